"""Metric writers, and the other messages of a run.

Another writer is one class with `scalars`, `text` and `close`, and one line in `open_writers`.
Writers that send to a server are in run/trackers.py.
"""

import contextlib
import datetime
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import psutil
from rich import progress
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from effnet_jax.run import files, quiet

METRICS = "metrics.jsonl"
ON_TERMINAL = sys.stderr is not None and sys.stderr.isatty()
console = quiet.Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints one plain line, on the first process only."""
    if jax.process_index() == 0:
        console.print(text, markup=False)


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, in order of steps."""
    return files.read_rows(pathlib.Path(workdir) / METRICS)


def read_scores(workdir: pathlib.Path, step: int) -> dict[str, float]:
    """Results of the evaluations at a step, as NAME/WEIGHTS/METRIC; empty if there are none."""
    rows = [row for row in read_metrics(workdir) if row["step"] == step]
    return {key: row[key] for row in rows for key in row if key.count("/") == 2}


class Writer:
    """The protocol of writers, which override what they need. Any method may raise OSError."""

    def scalars(self, step: int, row: dict[str, float]) -> None: ...  # Metrics by name.

    def text(self, line: str) -> None: ...  # A line for people.

    def close(self) -> None: ...


class JsonLines(Writer):
    """metrics.jsonl: a row of JSON for each call. Rows after the step resumed from are removed."""

    def __init__(self, workdir: pathlib.Path, step: int):
        self._path, self._unwritten = workdir / METRICS, []
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        files.write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def scalars(self, step: int, row: dict[str, float]) -> None:
        # Rows that the disk refuses are written with the next one.
        self._unwritten.append(json.dumps({"step": step, **row}) + "\n")
        files.append_whole(self._path, "".join(self._unwritten))
        self._unwritten.clear()


class TensorBoard(Writer):
    """Event files; TensorBoard ignores events of earlier files after the step resumed from."""

    def __init__(self, workdir: pathlib.Path, step: int):
        self._path, self._events = workdir / "tensorboard" / "events", None
        self._path.parent.mkdir(exist_ok=True)
        if step:
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, row: dict[str, float]) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items()]
        self._write(step, summary=Summary(value=values))

    def _write(self, step: int, **content: SessionLog | Summary) -> None:
        try:
            # Not a SummaryWriter: a full disk ends its thread, and the run would wait forever.
            self._events = self._events or EventsWriter(str(self._path), f".{step}")
            self._events.write_event(Event(step=step, wall_time=time.time(), **content))
            self._events.flush()
        except OSError:
            self._events = None  # Nothing after half an event can be read, so start a new file.
            raise

    def close(self) -> None:
        if self._events:
            self._events.close()


class Console(Writer):
    """A progress bar on a terminal, or plain lines elsewhere."""

    def __init__(self, total: int, start: int):
        self._total, self._bar = total, None
        if ON_TERMINAL:
            columns = progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[status]}")
            default = progress.Progress.get_default_columns()
            self._bar = progress.Progress(*default, *columns, console=console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=total, completed=start, status="")

    def text(self, line: str) -> None:
        say(line)

    def scalars(self, step: int, row: dict[str, float]) -> None:
        where = f"step {step}/{self._total}  epoch {row['epoch']:.1f}"
        if "train_loss" not in row:
            scores = "  ".join(f"{k} {v:.2%}" for k, v in row.items() if k.endswith("/top1"))
            say(f"{where}  {scores}")
            return
        text = (
            f"loss {row['train_loss']:.3f}  {row['images_per_second']:.0f} images/s  "
            f"data wait {row['data_wait']:.1%}"
        )
        if row["skipped_images"]:
            text += f"  skipped {row['skipped_images']:.0f} images"
        if self._bar:
            self._bar.update(self._task, completed=step, status=text)
            return
        left = datetime.timedelta(seconds=round(row["seconds_left"]))
        say(f"{where}  {text}  left {left}")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


class Writers(Writer):
    """Several writers as one. An error of the disk does not stop a run, and is reported once."""

    def __init__(self, writers: list[Writer], workdir: pathlib.Path):
        self._writers, self._workdir, self._failed = writers, workdir, False
        self._process = psutil.Process()

    def scalars(self, step: int, row: dict[str, float]) -> None:
        memory, failure = self._process.memory_info().rss / 2**20, None
        row = {**row, "resident_mib": round(memory, 1)}  # Of this process.
        for writer in self._writers:
            try:
                writer.scalars(step, row)
            except OSError as error:
                failure = error
        if failure and not self._failed:
            say(f"can't write metrics to {self._workdir}: {failure.strerror}. The run goes on")
        self._failed = failure is not None

    def text(self, line: str) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.text(line)

    def close(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.close()


def open_writers(
    workdir: pathlib.Path,
    step: int,
    total: int,
    tensorboard: bool = True,
    others: Sequence[Writer] = (),
) -> Writers:
    """The writers of a run that starts or resumes at `step` of `total`; only on process 0."""
    writers = []
    if jax.process_index() == 0:
        writers = [JsonLines(workdir, step), Console(total, step), *others]
        if tensorboard:
            writers.append(TensorBoard(workdir, step))
    return Writers(writers, workdir)
