"""What a compiled program moves, read from its text: between devices, and to and from memory."""

import collections
import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# `name = shape operation(`. A shape may be a tuple and hold layouts, as in
# `(f32[8,128]{1,0:T(8,128)S(1)}, /*index=1*/u32[])`: the operation is the first lower-case word
# after a space that a bracket follows.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (\S.*?) ([a-z][a-z0-9\-]*)\(")
HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,<=]*)\]")
CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|called_computations|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
CHANNEL = re.compile(r"\bchannel_id=(\d+)")


class Collective(NamedTuple):
    """One instruction that moves arrays between devices.

    Attributes:
      kind: one of KINDS.
      bytes: of its result, on one device; of several arrays where the compiler combined them.
      in_loop: whether it is in the body of a loop, and so runs more than once.
    """

    kind: str
    bytes: int
    in_loop: bool


def collectives(compiled_text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    An asynchronous one is one: of a `-start` and a `-done`, or spread over several fusions of a TPU
    program, which then have the same channel. What is in a loop is there once, whatever the loop's
    trips.

    Args:
      compiled_text: HLO after optimisation, `jitted.lower(...).compile().as_text()`, of any
        platform.
    """
    found, calls, computation = [], collections.defaultdict(set), ""
    bodies, fused = set(), set()
    for line in compiled_text.splitlines():
        if not line[:1].isspace():
            if header := HEADER.match(line):
                computation = header[1]
            continue
        if not (instruction := INSTRUCTION.match(line)):
            continue
        shape, operation = instruction.groups()
        for what, names in CALLED.findall(line):
            names = re.findall(r"[\w.\-]+", names)
            calls[computation].update(names)
            if what == "body":
                bodies.update(names)
            if operation == "fusion":
                fused.update(names)
        # The result of a pair is that of its end; its start also holds what went in.
        kind = operation.removesuffix("-done")
        if kind in KINDS:
            channel = CHANNEL.search(line)
            found.append((computation, kind, _bytes(shape), channel and channel[1]))

    looped, left = set(), list(bodies)
    while left:
        computation = left.pop()
        if computation not in looped:
            looped.add(computation)
            left += calls[computation]

    result, channels = [], set()
    for computation, kind, size, channel in found:
        if channel and computation in fused:
            if (kind, channel) in channels:
                continue
            channels.add((kind, channel))
        result.append(Collective(kind, size, computation in looped))
    return result


def _bytes(shape: str) -> int:
    """Size of an array, or of all in a tuple, from its text."""
    total = 0
    for kind, bits, dimensions in ARRAY.findall(shape):
        count = 1
        for dimension in re.findall(r"\d+", dimensions):
            count *= int(dimension)
        total += -(-count * (8 if kind == "pred" else int(bits)) // 8)
    return total


# What names, takes apart or passes on arrays without moving them.
FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "tuple",
    "while",
}
LAID_OUT = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
EXECUTED = ("body", "condition", "branch_computations", "true_computation", "false_computation")


def memory_traffic(compiled_text: str, trips: int = 1) -> int:
    """Bytes between a TPU and its memory in one run of a compiled program, on one device.

    Each instruction reads its operands and writes its result once, with the padding of their tiles;
    what the compiler keeps on the chip, a layout with S(1), moves nothing. XLA's own count, "bytes
    accessed", knows no such difference. It knows when a fusion reads a slice of an operand, which
    here counts as a whole.

    Args:
      compiled_text: as for `collectives`.
      trips: of each loop.
    """
    computations, computation, entry = {}, "", ""
    for line in compiled_text.splitlines():
        if header := HEADER.match(line):
            computation = header[1]
            computations[computation] = []
            entry = computation if line.startswith("ENTRY") else entry
        elif INSTRUCTION.match(line):
            computations[computation].append(line)

    total, left = 0, [(entry, 1)]
    while left:
        computation, times = left.pop()
        sizes, begun = {}, {}  # By name: bytes of the result, and bytes that a `-start` may read.
        for line in computations[computation]:
            shape, operation = INSTRUCTION.match(line).groups()
            name, _, rest = line.partition(" = ")
            name = name.split()[-1].lstrip("%")
            operands = re.findall(
                r"%([\w.\-]+)", rest.partition(f" {operation}(")[2].partition(")")[0]
            )
            read = sum(sizes.get(each, 0) for each in operands)
            sizes[name] = _memory_bytes(shape)
            for what, names in CALLED.findall(line):
                if what in EXECUTED or operation == "call":
                    again = times * trips if operation == "while" else times
                    left += [(each, again) for each in re.findall(r"[\w.\-]+", names)]
            if operation.endswith("-start"):
                begun[name] = read
            elif operation.endswith("-done"):
                # Only as much is read as comes out of it, which may be a slice.
                read = min(begun.get(operands[0], 0), _memory_bytes(shape, on_chip=True))
                total += times * (read + sizes[name])
            elif operation not in FREE and "ConcatBitcast" not in line:
                total += times * (read + sizes[name])
    return total


def _memory_bytes(shape: str, on_chip: bool = False) -> int:
    """Padded size of an array, or of all in a tuple, with or without those kept on the chip."""
    total = 0
    for kind, bits, dimensions, order, layout in LAID_OUT.findall(shape):
        if not on_chip and re.search(r"S\([1-9]", layout):
            continue
        lengths = [int(length) for length in dimensions.split(",") if length]
        if tile := re.match(r"T\(([\d,]+)\)", layout):
            minor_first = [int(axis) for axis in order.split(",") if axis]
            for axis, unit in zip(minor_first, map(int, tile[1].split(",")[::-1]), strict=False):
                lengths[axis] = -(-lengths[axis] // unit) * unit
        total += math.prod(lengths) * (8 if kind == "pred" else int(bits)) // 8
    return total
