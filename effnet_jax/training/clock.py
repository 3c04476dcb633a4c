"""Where a run's time goes, and what its steps returned, without stopping the device to ask.

A process adds rows to goodput.jsonl: when it starts, at every window of the log, at checkpoints and
roll-backs, and when it ends. A process that is killed loses the row it had not written. Rework
follows from these rows alone: a start or a roll-back names the checkpoint that the run went back
to, and the time spent after that checkpoint was in vain.
"""

import collections
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from effnet_jax.errors import NonFiniteLossError
from effnet_jax.run import files

FILE = "goodput.jsonl"
# Every moment of a process belongs to one of these.
CATEGORIES = {
    "start": "start, until the step is compiled",
    "compile": "compiling the step",
    "data": "waiting for data",
    "step": "steps that count",
    "evaluation": "evaluation",
    "checkpoint": "waiting for a checkpoint",
    "rework": "rework: steps done again, roll-backs",
}
# What becomes rework if the checkpoint that a run resumes from is older.
REPEATED = ("data", "step", "evaluation", "checkpoint")
IN_FLIGHT = 2  # Steps dispatched ahead: enough to hide dispatch, few enough to time the wait.


class Clock:
    """The clock of one process; it starts when it is made.

    Attributes:
      step: that the run is at.
    """

    def __init__(self):
        self.step = 0
        self._file = None
        self._category, self._since = "start", time.perf_counter()
        self._seconds, self._written = collections.Counter(), collections.Counter()

    def open(self, workdir: pathlib.Path, step: int) -> None:
        """Notes the start of a process at `step`; the first process alone writes."""
        self.step = step
        if jax.process_index() == 0:
            path = workdir / FILE
            lines = [json.dumps(row) + "\n" for row in files.read_rows(path)]
            files.write_atomically(path, "".join(lines))
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close().
        self.write(event="start")

    @contextlib.contextmanager
    def spent(self, category: str) -> Iterator[None]:
        """The time inside belongs to `category`, and not to the one around it."""
        around = self._enter(category)
        try:
            yield
        finally:
            self._enter(around)

    def _enter(self, category: str) -> str:
        now = time.perf_counter()
        self._seconds[self._category] += now - self._since
        before, self._category, self._since = self._category, category, now
        return before

    def seconds(self) -> collections.Counter[str]:
        """Seconds of this process so far, by category."""
        self._enter(self._category)
        return self._seconds.copy()

    def write(self, **event: Any) -> None:
        """Adds a row: what was spent since the last one, until `self.step`, and what happened."""
        if self._file is None:
            return
        seconds = self.seconds()
        spent = {name: round(seconds[name] - self._written[name], 4) for name in seconds}
        row = {"time": round(time.time(), 3), "step": self.step, **event, "seconds": spent}
        # A full disk does not stop a run: the next row has the time of this one.
        with contextlib.suppress(OSError):
            self._file.write(f"{json.dumps(row)}\n".encode())
            self._written = seconds

    def close(self) -> None:
        if self._file:
            self.write()
            self._file.close()


class Meter:
    """Sums of a window's metrics, its throughput, and the share of it spent waiting for data."""

    def __init__(self, batch_size: int, clock: Clock):
        self._batch_size, self._clock = batch_size, clock
        self._pending = collections.deque()
        self._reset()

    def _reset(self) -> None:
        self._before = self._clock.seconds()
        self._steps = 0
        self._sums = collections.Counter()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, and reads those of the step IN_FLIGHT before."""
        self._clock.step = step
        self._pending.append((step, metrics))
        while len(self._pending) > IN_FLIGHT:
            self._read()

    def check(self) -> None:
        """Reads all that is pending; raises NonFiniteLossError that names the first bad step."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        step, metrics = self._pending.popleft()
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        for key in ("loss", "grad_norm", "weight_norm"):
            if not math.isfinite(values[key]):
                raise NonFiniteLossError(f"{key} is {values[key]} at step {step}", step)
        self._sums.update(values)
        self._steps += 1

    def window(self) -> dict[str, float]:
        """Means over the window that ends here; the next window starts."""
        self.check()
        sums, spent = self._sums, self._clock.seconds()
        spent.subtract(self._before)
        seconds = spent["step"] + spent["data"]
        count = max(sums["count"], 1)  # All may have been skipped.
        result = {
            "train_loss": sums["loss"] / count,
            "train_top1": sums["correct"] / count,
            "grad_norm": sums["grad_norm"] / self._steps,
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": spent["data"] / seconds,
            # With on_corrupt="skip" the pipeline masks what it can't read.
            "skipped_images": self._steps * self._batch_size - sums["count"],
        }
        self._reset()
        return result
