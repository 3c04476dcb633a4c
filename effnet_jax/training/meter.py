"""What the device returned and how long it took, without stopping it to ask."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator
from typing import TypeVar

import jax

from effnet_jax.errors import NonFiniteLossError

T = TypeVar("T")
IN_FLIGHT = 2  # Steps the host runs ahead: enough to hide dispatch, few enough to time the wait.


class Meter:
    """Sums of metrics, throughput and the share of time spent waiting for data, by window."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._pending = collections.deque()
        self._reset()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._waited = self._paused = 0.0
        self._steps = 0
        self._sums = collections.Counter()

    def next_batch(self, batches: Iterator[T]) -> T:
        """The next batch; the time it takes counts as waiting for data."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For what is no training, an evaluation say: its time does not count."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, and reads those of the step before the last."""
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
                raise NonFiniteLossError(
                    f"{key} is {values[key]} at step {step}: stopped. A lower learning rate or a "
                    "longer warm-up often helps"
                )
        self._sums.update(values)
        self._steps += 1

    def window(self) -> dict[str, float]:
        """Means over the window that ends here, which starts the next one."""
        self.check()
        sums, seconds = self._sums, time.perf_counter() - self._started - self._paused
        count = max(sums["count"], 1)  # All may have been skipped.
        result = {
            "train_loss": sums["loss"] / count,
            "train_top1": sums["correct"] / count,
            "grad_norm": sums["grad_norm"] / self._steps,
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            # Of on_corrupt="skip": the pipeline masks them.
            "skipped_images": self._steps * self._batch_size - sums["count"],
        }
        self._reset()
        return result
