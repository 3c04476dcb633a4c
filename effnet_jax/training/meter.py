"""What the device returned and how long it took, without stopping it to ask."""

import collections
import math

import jax

from effnet_jax.errors import NonFiniteLossError
from effnet_jax.training.goodput import Goodput

IN_FLIGHT = 2  # Steps the host runs ahead: enough to hide dispatch, few enough to time the wait.


class Meter:
    """Sums of metrics, throughput and the share of time spent waiting for data, by window."""

    def __init__(self, batch_size: int, goodput: Goodput):
        self._batch_size, self._goodput = batch_size, goodput
        self._pending = collections.deque()
        self._reset()

    def _reset(self) -> None:
        self._before = self._goodput.seconds()
        self._steps = 0
        self._sums = collections.Counter()

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
                raise NonFiniteLossError(f"{key} is {values[key]} at step {step}", step)
        self._sums.update(values)
        self._steps += 1

    def window(self) -> dict[str, float]:
        """Means over the window that ends here, which starts the next one."""
        self.check()
        sums, spent = self._sums, self._goodput.seconds()
        spent.subtract(self._before)
        seconds = spent["step"] + spent["data"]
        count = max(sums["count"], 1)  # All may have been skipped.
        result = {
            "train_loss": sums["loss"] / count,
            "train_top1": sums["correct"] / count,
            "grad_norm": sums["grad_norm"] / self._steps,
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": spent["data"] / seconds,
            # Of on_corrupt="skip": the pipeline masks them.
            "skipped_images": self._steps * self._batch_size - sums["count"],
        }
        self._reset()
        return result
