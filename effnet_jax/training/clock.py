"""Where a run's time goes, what its steps returned, and who is slow, without stopping the device.

A process adds rows to goodput.jsonl when it starts and ends, at every window of the log, checkpoint
and roll-back. Rework follows from them: the time after a checkpoint that a later row went back to.
"""

import collections
import contextlib
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from effnet_jax.errors import NonFiniteLossError
from effnet_jax.run import files
from effnet_jax.run.processes import Alone

T = TypeVar("T")
FILE = "goodput.jsonl"
# Every moment of a process belongs to one of these.
CATEGORIES = {
    "start": "start, until the step is compiled",
    "compile": "compiling the step",
    "data": "waiting for data",
    "step": "steps that count",
    "evaluation": "evaluation",
    "checkpoint": "waiting for a checkpoint",
    "profile": "starting and writing profiles",
    "rework": "rework: steps done again, roll-backs",
}
# What becomes rework if the checkpoint that a run resumes from is older.
REPEATED = ("data", "step", "evaluation", "checkpoint")
IN_FLIGHT = 2  # Steps dispatched ahead: enough to hide dispatch, few enough to time the wait.
BINS = 4  # Of the histogram of step times, for each doubling.


class Clock:
    """The clock of one process; it starts when it is made. `step` is where the run is."""

    def __init__(self):
        self.step = 0
        self._path = None
        self._category, self._since = "start", time.perf_counter()
        self._seconds, self._written = collections.Counter(), collections.Counter()
        self._steps: collections.Counter[int] = collections.Counter()  # By bin; not yet written.

    def open(self, workdir: pathlib.Path, step: int) -> None:
        """Notes the start of a process at `step`; the first process alone writes."""
        self.step = step
        if jax.process_index() == 0:
            self._path = workdir / FILE
            lines = [json.dumps(row) + "\n" for row in files.read_rows(self._path)]
            files.write_atomically(self._path, "".join(lines))
        self.write(event="start")

    @contextlib.contextmanager
    def spent(self, category: str) -> Iterator[None]:
        """The time inside belongs to `category`, and not to the one around it; traces show it."""
        around = self._enter(category)
        try:
            with jax.profiler.TraceAnnotation(category):
                yield
        finally:
            self._enter(around)

    def next_of(self, batches: Iterator[Any]) -> Any:
        """The next batch, and the wait for it is "data"."""
        with self.spent("data"):
            return next(batches)

    def _enter(self, category: str) -> str:
        now = time.perf_counter()
        self._seconds[self._category] += now - self._since
        before, self._category, self._since = self._category, category, now
        return before

    def seconds(self) -> collections.Counter[str]:
        """Seconds of this process so far, by category."""
        self._enter(self._category)
        return self._seconds.copy()

    def add_steps(self, seconds: float, count: int) -> None:
        """Counts steps that took so long each, for the histogram."""
        self._steps[round(BINS * math.log2(max(seconds, 1e-6)))] += count

    def write(self, **event: Any) -> None:
        """Adds a row: what was spent since the last one, until `self.step`, and what happened."""
        if self._path is None:
            return
        seconds = self.seconds()
        spent = {name: round(seconds[name] - self._written[name], 4) for name in seconds}
        row = {"time": round(time.time(), 3), "step": self.step, **event, "seconds": spent}
        row |= {"step_times": self._steps} if self._steps else {}
        # A full disk does not stop a run: the next row has the time of this one.
        with contextlib.suppress(OSError):
            files.append_whole(self._path, f"{json.dumps(row)}\n")
            self._written, self._steps = seconds, collections.Counter()

    def close(self) -> None:
        self.write()


class Stragglers:
    """Names the processes that make the others wait, and names them again when they change.

    A step ends on all processes at once, so its time does not say who was late. One that needs much
    longer than the median for its own part, its data above all, in two windows of the log, is.
    """

    def __init__(self, processes: Alone):
        self._processes = processes
        self._late, self._named = set(), set()  # In the last window; and by the last message.

    def __call__(self, own: float, step: float) -> str:
        """A message, or "" for nothing new; `own` seconds a step of this process, and of a step."""
        every = self._processes.share(own)
        usual = statistics.median_low(every.values())
        limit = max(2 * usual, usual + 0.1 * step)
        before, self._late = self._late, {i for i in every if every[i] > limit}
        named, self._named = self._named, self._late & before
        if self._named == named:
            return ""
        if not self._named:
            return "no process is slow any more"
        longest = max(every[i] for i in self._named)
        return (
            f"slow: {self._processes.describe(sorted(self._named))}; {longest:.3f} s of each step "
            f"for data and other work before the device, and {usual:.3f} s is usual"
        )


class Meter:
    """Sums of a window's metrics, its throughput, and the share of it spent waiting for data."""

    def __init__(self, batch_size: int, clock: Clock):
        self._batch_size, self._clock = batch_size, clock
        self._pending, self._sums = collections.deque(), collections.Counter()
        self._before = seconds = clock.seconds()
        # Of the window's steps; when the last one was done, by the clock of steps and data; and
        # how long this process waited for devices, its own and those of the others.
        self._times: list[float] = []
        self._done, self._blocked = seconds["step"] + seconds["data"], 0.0

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, and reads those of the step IN_FLIGHT before."""
        self._clock.step = step
        self._pending.append((step, metrics))
        self.check(IN_FLIGHT)

    def blocked(self, work: Callable[..., T], *arguments: Any) -> T:
        """Returns work(*arguments), whose time is a wait for the devices of all processes."""
        began = time.perf_counter()
        result = work(*arguments)
        self._blocked += time.perf_counter() - began
        return result

    def check(self, in_flight: int = 0) -> None:
        """Reads pending metrics; raises NonFiniteLossError that names the first bad step."""
        count = len(self._pending) - in_flight
        while len(self._pending) > in_flight:
            step, metrics = self._pending.popleft()
            metrics = self.blocked(jax.device_get, metrics)
            values = {key: float(value) for key, value in metrics.items()}
            for key in ("loss", "grad_norm", "weight_norm"):
                if not math.isfinite(values[key]):
                    raise NonFiniteLossError(f"{key} is {values[key]} at step {step}", step)
            self._sums.update(values, steps=1)
        if count > 0:
            self._note_times(count)

    def _note_times(self, count: int) -> None:
        """The last `count` steps are done: several at the end of a window, in the mean of all."""
        seconds = self._clock.seconds()
        before, self._done = self._done, seconds["step"] + seconds["data"]
        self._times += [(self._done - before) / count] * count
        self._clock.add_steps(self._times[-1], count)

    def window(self) -> dict[str, float]:
        """Means over the window that ends here; the next window starts."""
        self.check()
        sums, self._sums = self._sums, collections.Counter()
        before, self._before = self._before, self._clock.seconds()
        waited = self._before["data"] - before["data"]
        seconds = self._before["step"] - before["step"] + waited
        images, count = sums["steps"] * self._batch_size, max(sums["count"], 1)
        times, self._times = self._times, []
        blocked, self._blocked = self._blocked, 0.0
        return {
            "train_loss": sums["loss"] / count,
            "train_top1": sums["correct"] / count,
            "grad_norm": sums["grad_norm"] / sums["steps"],
            "images_per_second": images / seconds,
            "data_wait": waited / seconds,
            "step_seconds": statistics.median(times),
            "step_seconds_max": max(times),
            "own_seconds": (seconds - blocked) / sums["steps"],
            # With on_corrupt="skip" the pipeline masks what it can't read: in the end, everything.
            "skipped_images": images - sums["count"],
        }
