"""A look inside some steps: a trace, the most expensive operations, and what fills the memory."""

import collections
import contextlib
import gzip
import json
import pathlib
import re
from collections.abc import Callable

import jax
import rich.box
import rich.table

from effnet_jax.errors import UserError
from effnet_jax.run import writers
from effnet_jax.run.signals import Signals
from effnet_jax.training.clock import Clock
from effnet_jax.training.state import TrainState

FOLDER = "tensorboard"  # In a workdir: TensorBoard's plugin looks in plugins/profile below it.
TRACE = "perfetto_trace.json.gz"  # Beside the .xplane.pb that TensorBoard opens.
STEPS = 5  # That SIGUSR1 asks for.
LISTED = 10  # Operations in the table.
SCOPES = ("data", "forward", "backward", "update", "other")
# Operations whose time is that of the operations inside them.
CONTAINERS = re.compile(r"(while|call|conditional)(\.\d+)?")
# `%name = shape operation(..., calls=%computation, metadata={op_name="..."}`, and what starts one.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
CALLS = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
SOURCE = re.compile(r'op_name="([^"]*)"')


def window(steps: str, total: int) -> range:
    """The steps of `config.profile.steps`, as in "100:105", which has 5 steps; "" has none."""
    if not steps:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", steps)
    if not match or not 2 <= int(match[1]) < int(match[2]):
        raise UserError(
            f"config.profile.steps={steps!r} is not FIRST:STOP, as in 100:105 for steps 100 to "
            "104; the first step of a run can't be profiled"
        )
    first, stop = map(int, match.groups())
    if stop > total + 1:
        last = f"{max(2, total + 1 - stop + first)}:{total + 1}"
        raise UserError(
            f"config.profile.steps={steps} ends with step {stop - 1}, and the run has {total} "
            f"steps; the last window is {last}"
        )
    return range(first, stop)


class Profiler:
    """The hook that traces the steps of a window, and STEPS steps after a SIGUSR1.

    `program` returns the compiled step that a step used. It compiles nothing and changes no step; a
    trace waits for the device before its first step and after its last.
    """

    def __init__(
        self,
        steps: range,
        workdir: pathlib.Path,
        clock: Clock,
        signals: Signals,
        program: Callable[[int], jax.stages.Compiled],
    ):
        self._window, self._steps = steps, steps  # Of the config, and to trace next.
        self._folder, self._clock = workdir / FOLDER, clock
        self._signals, self._program = signals, program
        self._traced: list[int] = []  # Steps of the trace that is being made.
        self._is_on = False

    def __call__(self, step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        if self._is_on:
            self._traced.append(step)
            if step + 1 not in self._steps:
                self._finish(state, metrics)
            return
        if self._signals.profile_asked:
            self._signals.profile_asked = False
            self._steps = range(step + 1, step + 1 + STEPS)
        if step + 1 in self._steps:
            self._start(metrics)

    def _start(self, metrics: dict[str, jax.Array]) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # It slows Python down, and fills the trace.
        with self._clock.spent("profile"):
            jax.block_until_ready(metrics)
            try:
                jax.profiler.start_trace(self._folder, profiler_options=options)
                self._is_on = True
            except RuntimeError as error:  # Another hook traces, for instance.
                _tell(f"can't profile: {error} The run goes on")
                self._window = self._steps = range(0)

    def close(self) -> None:
        """Ends a trace whose window the run did not reach the end of; it is kept."""
        if self._is_on:
            with contextlib.suppress(OSError, RuntimeError):  # A full disk.
                jax.profiler.stop_trace()
            _tell(f"the run ended while it was profiled; the trace is in {self._folder}")

    def _finish(self, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        steps, self._traced, self._steps, self._is_on = self._traced, [], self._window, False
        program = self._program(steps[-1])
        with self._clock.spent("profile"):
            jax.block_until_ready(metrics)
            try:
                jax.profiler.stop_trace()
                path = max(self._folder.glob("plugins/profile/*/*.xplane.pb"), key=_changed)
                module, names = source_names(program.as_text())
                write_perfetto(path, module, names)
                seconds = operation_seconds(path, module)
            except (OSError, RuntimeError, ValueError) as error:
                _tell(f"can't write the profile to {self._folder}: {error}. The run goes on")
                return
        each = len(steps) * jax.local_device_count()
        where = f"steps {steps[0]} to {steps[-1]}"
        _tell(f"profile of {where}: {path.with_name(TRACE)}")
        writers.console.print(table({key: s / each for key, s in seconds.items()}, names, where))
        _tell(describe_memory(state, program))


def _tell(text: str) -> None:
    """Prints a line; of any process, as each may be asked for a profile."""
    writers.console.print(text, markup=False)


def _changed(path: pathlib.Path) -> float:
    return path.stat().st_mtime


def source_names(compiled_text: str) -> tuple[str, dict[str, str]]:
    """A compiled program's name, and what its instructions were made from: jit(f)/forward/.../conv.

    A fusion that does not say it has the name of the last instruction in it that does.
    """
    module = re.match(r"HloModule ([\w.\-]+)", compiled_text)[1]
    names, last, computation = {}, {}, ""
    for line in compiled_text.splitlines():
        if not line[:1].isspace() and (header := HEADER.match(line)):
            computation = header[1]
        if not (match := INSTRUCTION.match(line)):
            continue
        source, calls = SOURCE.search(line), CALLS.search(line)
        name = source[1] if source else last.get(calls[1], "") if calls else ""
        names[match[1]] = name
        if "/" in name:
            last[computation] = name
    return module, names


def place(name: str) -> tuple[str, str]:
    """The scope of an instruction, one of SCOPES, and where it is in that, as stage3/block2/...."""
    parts = re.sub(r"(jit|jvp|transpose|vmap|remat|checkpoint)\(|\)", "", name).split("/")
    for scope in ("backward", "forward", "update", "data"):
        if scope in parts:
            inner = [part for part in parts[parts.index(scope) + 1 :] if part not in SCOPES]
            return scope, "/".join(part for part in inner if not part[:1].isupper())  # Classes.
    # A program of older code, which the compilation cache returns for the same computation.
    old = "backward" if "transpose(" in name else "forward" if "jvp(" in name else "other"
    return old, "/".join(part for part in parts[1:] if not part[:1].isupper())


def operation_seconds(path: pathlib.Path, module: str) -> dict[str, float]:
    """Seconds by instruction of a program in a trace, summed over devices and threads."""
    total = collections.Counter()
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    lines = [line for plane in planes for line in plane.lines]
    for where, event in ((line.name, event) for line in lines for event in line.events):
        stats = dict(event.stats)
        name = stats.get("hlo_op", "")
        if not name and where == "XLA Ops":  # A TPU's, which has the whole text.
            name = event.name.partition(" ")[0].lstrip("%")
        is_own = stats.get("hlo_module", module) == module
        if name and is_own and not CONTAINERS.fullmatch(name):
            total[name] += event.duration_ns * 1e-9
    return total


def write_perfetto(path: pathlib.Path, module: str, names: dict[str, str]) -> None:
    """Writes TRACE for Perfetto: operations with their scope and place in the network as a name."""
    with gzip.open(next(path.parent.glob("*.trace.json.gz")), "rt") as file:
        trace = json.load(file)
    trace.pop("metadata", None)  # Perfetto refuses it.
    for event in trace["traceEvents"]:
        args = event.get("args", {})
        name = names.get(args.get("hlo_op", ""))
        if name and args.get("hlo_module") == module:
            scope, inner = place(name)
            event["name"], event["cat"] = f"{scope} {inner}".strip(), scope
    with gzip.open(path.with_name(TRACE), "wt", compresslevel=3) as file:
        json.dump(trace, file)


def table(seconds: dict[str, float], names: dict[str, str], where: str) -> rich.table.Table:
    """The LISTED most expensive operations, and in the title the share of each scope."""
    whole = sum(seconds.values()) or 1.0
    scopes = collections.Counter()
    for key, spent in seconds.items():
        scopes[place(names.get(key, ""))[0]] += spent / whole
    shares = ", ".join(f"{scope} {scopes[scope]:.0%}" for scope in SCOPES)
    title = f"{where}, the time of operations: {shares}"
    result = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
    for column in ("operation", "scope", "made from", "ms a step", "share"):
        result.add_column(column, overflow="fold")  # Names are for searching: none is cut.
    for key in sorted(seconds, key=seconds.get, reverse=True)[:LISTED]:
        scope, inner = place(names.get(key, ""))
        numbers = f"{1000 * seconds[key]:.2f}", f"{seconds[key] / whole:.1%}"
        result.add_row(key, scope, inner, *numbers)
    return result


def describe_memory(state: TrainState, program: jax.stages.Compiled) -> str:
    """A device's memory by category, and what the backend measured, where it does."""
    device = jax.local_devices()[0]

    def size(tree: object) -> int:
        shards = [each for leaf in jax.tree.leaves(tree) for each in leaf.addressable_shards]
        return sum(each.data.nbytes for each in shards if each.device == device)

    sizes = {
        "parameters": size(state.params),
        "BatchNorm statistics": size(state.batch_stats),
        "optimizer state": size(state.opt_state),
        "averages": size(state.ema),
    }
    if analysis := program.memory_analysis():
        sizes["batch"] = max(0, analysis.argument_size_in_bytes - size(state))
        sizes["activations and other temporaries"] = analysis.temp_size_in_bytes
    stats = device.memory_stats() or {}
    measured = {"in use": "bytes_in_use", "most so far": "peak_bytes_in_use", "of": "bytes_limit"}
    sizes |= {name: stats[key] for name, key in measured.items() if key in stats}
    return "memory of a device, MiB: " + ", ".join(
        f"{name} {number / 2**20:,.1f}" for name, number in sizes.items()
    )
