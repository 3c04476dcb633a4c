"""What a run leaves for people: metrics, the config and versions it ran with, progress, a table."""

import contextlib
import csv
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

import jax
import psutil
import rich.console
import rich.progress
import rich.table
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from effnet_jax import hosts
from effnet_jax.data.sources import Source, fingerprint
from effnet_jax.errors import UserError
from effnet_jax.trees import path_name

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
ON_TERMINAL = sys.stderr.isatty()
console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One plain line for the person who watches, of the first host's."""
    if hosts.is_first():
        console.print(text, markup=False)


def read_config(workdir: str | pathlib.Path) -> ConfigDict:
    """The config that a workdir was trained with; keys that are newer have their default."""
    from configs import default

    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"no run in {workdir}: {path} is missing; is --workdir right?")
    try:
        values = json.loads(path.read_text())
        values["model"]["base"], values["data"]["name"], values["checkpoint"]["keep_newest"]
        config = default.get_config().unlock()
        config.update(values)
        return config
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is no config that this program wrote: {error}") from None


def read_classes(workdir: str | pathlib.Path) -> tuple[str, ...]:
    """Names of the classes that a workdir was trained on, by label."""
    path = pathlib.Path(workdir) / "classes.json"
    try:
        return tuple(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"can't read the names of the classes from {path}: {error}") from None


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, in order of steps."""
    return read_rows(pathlib.Path(workdir) / "metrics.jsonl")


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, none where it is missing; a line cut short by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_atomically(path: pathlib.Path, text: str) -> None:
    """So that a crash leaves the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def append_whole(path: pathlib.Path, text: str) -> None:
    """Appends all of a text or, where that raises OSError, nothing of it."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            data = text.encode()
            while data:
                data = data[file.write(data) :]
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: pathlib.Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def git_commit() -> str | None:
    """The commit that this code is at, with "-dirty" where the tree was changed."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def start_facts(config: ConfigDict, sources: dict[str, Source]) -> dict[str, Any]:
    """What has to be the same on every host of a run: code, versions, config, data.

    Args:
      config: the whole config.
      sources: by the name of the split.
    """
    values = jax.tree_util.tree_flatten_with_path(
        {"config": config.to_dict()}, is_leaf=lambda value: not isinstance(value, dict)
    )[0]
    return {
        "code": f"files {hosts.code_hash()}",
        **{name: metadata.version(name) for name in PACKAGES},
        **{path_name(path).replace("/", "."): value for path, value in values},
        **{f"data {name}": fingerprint(source) for name, source in sources.items()},
    }


def describe_run() -> dict[str, Any]:
    """When, where and with what a process runs."""
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "hosts": jax.process_count(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
    }


def describe_machine() -> dict[str, Any]:
    """`describe_run` in the flat columns that rows under results/ end with."""
    run = describe_run()
    versions = {name: run["versions"][name] for name in ("jax", "jaxlib")}
    kept = ("device", "devices", "cpus", "python", "commit", "time")
    return {**versions, **{key: run[key] for key in kept}}


def append_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a results file, which is begun with a header where it doesn't exist."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", newline="") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
            if header not in (None, list(rows[0])):
                raise UserError(f"{path} has other columns than these rows; choose another --csv")
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if header is None:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"can't write to --csv={path}: {error.strerror}; rows: {rows}") from None


def changed_keys(old: dict, new: dict, prefix: str = "config") -> list[str]:
    """`key: old -> new` for every value that differs between two nested dicts."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += changed_keys(before, after, f"{prefix}.{key}")
        elif before != after:
            lines.append(f"{prefix}.{key}: {before} -> {after}")
    return lines


@dataclasses.dataclass
class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    total: int
    start: int
    _bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Progress":
        if ON_TERMINAL and hosts.is_first():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
                rich.progress.TextColumn("{task.fields[status]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self.total, completed=self.start, status=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def status(self, step: int, row: dict[str, float]) -> None:
        """Shows a window's metrics, and where there is no bar also the step and the time left."""
        text = (
            f"loss {row['train_loss']:.3f}  {row['images_per_second']:.0f} images/s  "
            f"data wait {row['data_wait']:.1%}"
        )
        if row["skipped_images"]:
            text += f"  skipped {row['skipped_images']:.0f} images"
        if self._bar:
            self._bar.update(self._task, completed=step, status=text)
        else:
            left = datetime.timedelta(seconds=round(row["seconds_left"]))
            say(f"step {step}/{self.total}  epoch {row['epoch']:.1f}  {text}  left {left}")


class Records:
    """The files of a workdir: config.json, classes.json, runs.jsonl, metrics.jsonl, TensorBoard.

    The host with number 0 writes, the others do nothing.
    """

    def __init__(self, workdir: pathlib.Path, config: ConfigDict, classes: tuple[str, ...]):
        self._workdir, self._config, self._classes = workdir, config, classes
        self._writes = jax.process_index() == 0
        self._events: EventsWriter | None = None
        self._unwritten: list[str] = []
        self._process = psutil.Process()

    def open(self, step: int) -> None:
        """Writes what is known before the first step, and makes the metrics end at `step`.

        A config that differs from the last one is kept beside it.
        """
        if not self._writes:
            return
        path = self._workdir / "config.json"
        config = json.loads(self._config.to_json_best_effort())
        if path.exists():
            old = json.loads(path.read_text())
            if changes := changed_keys(old, config):
                say("going on with a changed config:\n  " + "\n  ".join(changes))
                os.replace(path, self._workdir / f"config_until_step_{step}.json")
        write_atomically(path, json.dumps(config, indent=2) + "\n")
        write_atomically(self._workdir / "classes.json", json.dumps(self._classes) + "\n")
        with open(self._workdir / "runs.jsonl", "a") as file:
            file.write(json.dumps({"start_step": step, **describe_run()}) + "\n")
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Makes the metrics end at `step`: what came after the checkpoint there is done again."""
        if not self._writes:
            return
        self.close()
        self._unwritten.clear()
        rows = [row for row in read_metrics(self._workdir) if row["step"] <= step]
        path = self._workdir / "metrics.jsonl"
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        (self._workdir / "tensorboard").mkdir(exist_ok=True)
        self._events = self._open_events(step)
        if step:
            log = SessionLog(status=SessionLog.START)  # TensorBoard drops what it has from here on.
            self._events.write_event(Event(step=step + 1, wall_time=time.time(), session_log=log))

    def _open_events(self, step: int) -> EventsWriter:
        # tensorboardX's SummaryWriter writes from a thread, which a full disk ends, whereupon the
        # run waits for it forever.
        return EventsWriter(str(self._workdir / "tensorboard" / "events"), f".{step}")

    def write(self, step: int, row: dict[str, float]) -> None:
        """One row of metrics, with the memory that this process holds.

        Rows that the disk refuses are kept and written with a later one; TensorBoard lacks them.
        """
        if not self._writes:
            return
        memory = self._process.memory_info().rss / 2**20
        row = {"step": step, **row, "resident_mib": round(memory, 1)}
        failed_before = bool(self._unwritten)
        self._unwritten.append(json.dumps(row) + "\n")
        try:
            append_whole(self._workdir / "metrics.jsonl", "".join(self._unwritten))
            self._unwritten.clear()
            self._events = self._events or self._open_events(step)
            values = [Summary.Value(tag=key, simple_value=row[key]) for key in row if key != "step"]
            event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
            self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            self._events = None  # What follows half an event can't be read: a new file, next time.
            if not failed_before:
                say(f"can't write metrics to {self._workdir}: {error.strerror}. The run goes on")

    def evaluation(self, step: int) -> dict[str, float] | None:
        """What the evaluation at a step found, if there was one before this start."""
        for row in read_metrics(self._workdir):
            if row["step"] == step and "ema_top1" in row:
                return {key: row[key] for key in row if key.startswith(("raw_", "ema_"))}
        return None

    def close(self) -> None:
        if self._events:
            with contextlib.suppress(OSError):
                self._events.close()


def result_table(scores: dict[str, float], title: str) -> rich.table.Table:
    """Top-1, top-5, loss and count of raw and averaged weights."""
    table = rich.table.Table("weights", "top-1", "top-5", "loss", "images", title=title)
    for weights in ("raw", "ema"):
        top1, top5, loss, count = (
            scores[f"{weights}_{k}"] for k in ("top1", "top5", "loss", "count")
        )
        table.add_row(weights, f"{top1:.2%}", f"{top5:.2%}", f"{loss:.4f}", str(count))
    return table
