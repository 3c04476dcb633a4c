"""The bytes that a compiled program moves between devices and to and from memory, from its text."""

import collections
import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Operations that refer to arrays, take them from tuples or pass them on without moving bytes.
FREE = re.compile(
    "after-all|bitcast|call|conditional|constant|get-tuple-element|opt-barrier|parameter|"
    "partition-id|tuple|while"
)
EXECUTED = ("body", "condition", "branch_computations", "true_computation", "false_computation")

# `name = shape operation(`. A shape may be a tuple with layouts, such as
# `(f32[8,128]{1,0:T(8,128)S(1)}, /*index=1*/u32[])`, so the operation is the first lower-case word
# between a space and an opening bracket.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\S.*?) ([a-z][a-z0-9\-]*)\(")
HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|called_computations|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
CHANNEL = re.compile(r"\bchannel_id=(\d+)")


class Collective(NamedTuple):
    """One instruction that moves arrays between devices."""

    kind: str  # One of KINDS.
    bytes: int  # Of its result on one device; of several arrays if the compiler combined them.
    in_loop: bool  # Whether it is in the body of a loop and may run more than once.


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    operation: str
    calls: list[tuple[str, str]]  # Pairs of role and computation: ("body", "region_1").
    line: str


def _parse(compiled_text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation by its name, in order, and the name of the entry."""
    computations, computation, entry = collections.defaultdict(list), "", ""
    for line in compiled_text.splitlines():
        if not line[:1].isspace() and (header := HEADER.match(line)):
            computation = header[1]
            entry = computation if line.startswith("ENTRY") else entry
        elif match := INSTRUCTION.match(line):
            called = CALLED.findall(line)
            calls = [(how, name) for how, text in called for name in re.findall(r"[\w.\-]+", text)]
            computations[computation].append(Instruction(*match.groups(), calls, line))
    return computations, entry


def collectives(compiled_text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    An asynchronous collective is listed once, although it is a pair of `-start` and `-done`, or
    several fusions of a TPU program that have the same channel. A collective in a loop is also
    listed once. `compiled_text` is `jitted.lower(...).compile().as_text()` for any platform.
    """
    computations, _ = _parse(compiled_text)
    everything = [each for instructions in computations.values() for each in instructions]
    fused = {name for each in everything if each.operation == "fusion" for _, name in each.calls}
    looped, left = set(), [name for each in everything for how, name in each.calls if how == "body"]
    while left:
        computation = left.pop()
        if computation not in looped:
            looped.add(computation)
            left += [name for each in computations.get(computation, ()) for _, name in each.calls]

    result, channels = [], set()
    for computation, instructions in computations.items():
        for each in instructions:
            # Of a pair, `-done` has the result; the shape of `-start` includes the operands.
            kind, channel = each.operation.removesuffix("-done"), CHANNEL.search(each.line)
            key = (kind, channel[1]) if channel and computation in fused else None
            if kind in KINDS and key not in channels:
                result.append(Collective(kind, _bytes(each.shape), computation in looped))
                channels |= {key} - {None}
    return result


def memory_traffic(compiled_text: str, trips: int = 1) -> int:
    """Bytes that one execution of a compiled program moves between a TPU device and its memory.

    Each instruction reads its operands and writes its result once, with the padding of their tiles.
    Arrays that the compiler keeps on the chip, with S(1) in their layout, are not counted; XLA's
    "bytes accessed" counts them too. If a fusion only reads slices of an operand, or updates slices
    in place, only the slices are counted. Every loop runs `trips` times.
    """
    computations, entry = _parse(compiled_text)
    total, left = 0, [(entry, 1)]
    while left:
        computation, times = left.pop()
        sizes, begun = {}, {}  # By name: bytes of a result, and bytes that a `-start` may read.
        for each in computations.get(computation, ()):
            operation, operands = each.operation, _operands(each)
            reads = [sizes.get(name, 0) for name in operands]
            written = sizes[each.name] = _bytes(each.shape, padded=True, on_chip=False)
            again = times * trips if operation == "while" else times
            left += [
                (to, again) for how, to in each.calls if how in EXECUTED or operation == "call"
            ]
            if operation.endswith("-start"):
                begun[each.name] = sum(reads)
                continue
            if operation.endswith("-done"):  # Reads no more than its result, which may be a slice.
                reads = [min(begun.get(operands[0], 0), _bytes(each.shape, padded=True))]
            elif fused := operation == "fusion" and computations.get(each.calls[0][1]):
                used, result = _used(fused)
                reads = [min(size, used[number]) for number, size in enumerate(reads)]
                written = min(written, result)
            if not FREE.fullmatch(operation) and "ConcatBitcast" not in each.line:
                total += times * (sum(reads) + written)
    return total


def _used(fused: list[Instruction]) -> tuple[dict[int, float], int]:
    """Bytes that a fusion reads of each parameter, by its number, and bytes that it writes.

    For a parameter that is only sliced or updated in place, only the slices count. Infinity means
    the whole parameter.
    """
    sizes = {each.name: _bytes(each.shape, padded=True) for each in fused}
    used, parameters, updated = collections.Counter(), {}, {}
    for each in fused:
        operands = _operands(each)
        base = operands[0] if operands else ""
        if each.operation == "parameter":
            parameters[each.name] = int(re.search(r" parameter\((\d+)\)", each.line)[1])
        elif each.operation == "bitcast":  # Another name for the same array.
            for known in (parameters, updated):
                known |= {each.name: known[base]} if base in known else {}
            continue
        elif each.operation == "dynamic-update-slice" and (base in parameters or base in updated):
            updated[each.name] = updated.get(base, 0) + sizes[operands[1]]
            operands = operands[1:]
        elif each.operation in ("slice", "dynamic-slice") and base in parameters:
            used[parameters[base]] += sizes[each.name]
            operands = operands[1:]
        used |= {parameters[name]: math.inf for name in operands if name in parameters}
    root = next(each for each in fused if each.line.lstrip().startswith("ROOT"))
    results = _operands(root) if root.operation == "tuple" else [root.name]
    return used, sum(updated.get(name, sizes[name]) for name in results)


def _operands(instruction: Instruction) -> list[str]:
    """The names of an instruction's operands, in order."""
    arguments = instruction.line.partition(f" {instruction.operation}(")[2].partition(")")[0]
    return re.findall(r"%([\w.\-]+)", arguments)


def _bytes(shape: str, padded: bool = False, on_chip: bool = True) -> int:
    """The size of an array such as `f32[8,128]{1,0:T(8,128)S(1)}`, or of all arrays in a tuple.

    `padded` includes the padding of tiles; `on_chip` includes arrays that are kept on the chip.
    """
    total = 0
    for kind, bits, dimensions, order, layout in ARRAY.findall(shape):
        if not on_chip and re.search(r"S\([1-9]", layout):
            continue
        lengths = [int(length) for length in re.findall(r"\d+", dimensions)]
        if padded and (tile := re.match(r"T\(([\d,]+)\)", layout)):
            minor_first = [int(axis) for axis in order.split(",") if axis]
            for axis, unit in zip(minor_first, map(int, tile[1].split(",")[::-1]), strict=False):
                lengths[axis] = -(-lengths[axis] // unit) * unit
        total += -(-math.prod(lengths) * (8 if kind == "pred" else int(bits)) // 8)
    return total
