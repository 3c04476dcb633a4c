"""Where a run's time goes, over all the processes that worked on it.

Each process adds rows to goodput.jsonl: when it starts, at every window of the log, checkpoint and
roll-back, and when it ends. One that is killed loses the row it had not written, no more. Which
steps are done again follows from these rows alone: a start or a roll-back names the checkpoint it
went back to, and what was spent after that had been in vain.
"""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import rich.box
import rich.table

from effnet_jax import records

FILE = "goodput.jsonl"
# Every moment of a process belongs to one of these.
PARTS = {
    "start": "start, until the step is compiled",
    "compile": "compiling the step",
    "data": "waiting for data",
    "step": "steps that count",
    "evaluation": "evaluation",
    "checkpoint": "waiting for a checkpoint",
    "lost": "lost: steps done again, roll-backs",
}
# What is in vain where the checkpoint that a run goes on from is older.
REPEATED = ("data", "step", "evaluation", "checkpoint")


class Goodput:
    """The clock of one process; it starts when this is made.

    Attributes:
      step: that the run is at.
    """

    def __init__(self):
        self.step = 0
        self._file = None
        self._part, self._since = "start", time.perf_counter()
        self._seconds, self._written = collections.Counter(), collections.Counter()

    def open(self, workdir: pathlib.Path, step: int) -> None:
        """Notes the start of a process that goes on at `step`; the host with number 0 writes."""
        self.step = step
        if jax.process_index() == 0:
            path = workdir / FILE
            lines = [json.dumps(row) + "\n" for row in records.read_rows(path)]
            records.write_atomically(path, "".join(lines))
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close().
        self.write(event="start")

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """The time inside belongs to a part, one of PARTS, and not to the part around it."""
        around = self._enter(part)
        try:
            yield
        finally:
            self._enter(around)

    def _enter(self, part: str) -> str:
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before

    def seconds(self) -> collections.Counter[str]:
        """Of this process so far, by part."""
        self._enter(self._part)
        return self._seconds.copy()

    def write(self, **event: Any) -> None:
        """A row: what was spent since the last one, until `self.step`; and what happened."""
        if self._file is None:
            return
        seconds = self.seconds()
        spent = {part: round(seconds[part] - self._written[part], 4) for part in seconds}
        row = {"time": round(time.time(), 3), "step": self.step, **event, "seconds": spent}
        # A full disk stops no run: the next row has the time of this one.
        with contextlib.suppress(OSError):
            self._file.write(f"{json.dumps(row)}\n".encode())
            self._written = seconds

    def close(self) -> None:
        if self._file:
            self.write()
            self._file.close()


def account(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by part, of all processes together; and "down", between two of them.

    Args:
      rows: of goodput.jsonl, in order.
    """
    total = collections.Counter(dict.fromkeys((*PARTS, "down"), 0.0))
    windows, end = [], None  # Of what may yet turn out to be lost; the last sign of life.
    for row in rows:
        if "event" in row:
            for window in windows:
                if window["step"] > row["step"]:
                    vain = {part: window["seconds"].get(part, 0.0) for part in REPEATED}
                    total.subtract(vain)
                    total["lost"] += sum(vain.values())
            windows = [window for window in windows if window["step"] <= row["step"]]
        if row.get("event") == "start" and end is not None:
            total["down"] += max(0.0, row["time"] - sum(row["seconds"].values()) - end)
        total.update(row["seconds"])
        windows.append(row)
        end = row["time"]
    return dict(total)


def table(workdir: pathlib.Path) -> rich.table.Table:
    """Time and share by part, of the run from its first start on; the goodput is its title."""
    rows = records.read_rows(workdir / FILE)
    seconds = account(rows)
    down = seconds.pop("down")
    whole = sum(seconds.values()) or 1.0
    events = collections.Counter(row.get("event") for row in rows)
    title = (
        f"goodput {seconds['step'] / whole:.1%}: {events['start']} start(s), "
        f"{events['rollback']} roll-back(s)"
    )
    result = rich.table.Table("", "seconds", "share", title=title, box=rich.box.SIMPLE_HEAD)
    for part, name in PARTS.items():
        result.add_row(name, f"{seconds[part]:,.1f}", f"{seconds[part] / whole:.1%}")
    result.add_row("not running, between two starts", f"{down:,.1f}", "")
    return result
