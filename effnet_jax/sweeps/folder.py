"""The folder of a sweep: configs, logs and workdirs of its runs, their state and their results.

DIR/configs/NAME.json   the run's whole config, written before the run starts
DIR/runs/NAME/          the run's workdir
DIR/logs/NAME.log       the run's output
DIR/runs/NAME/done.json scores, times and machine, written when the run is finished
DIR/results.csv         a row for each finished run
"""

import contextlib
import json
import pathlib
import re
from typing import Any

import rich.table

from effnet_jax import config as config_lib
from effnet_jax import csv_rows
from effnet_jax.errors import UserError
from effnet_jax.run import files, writers
from effnet_jax.sweeps.runs import Scheduled

CURVE = "val/ema/top1"  # The table of results also has this metric's value at every evaluation.


class Folder:
    """The folder of a sweep: its paths, and their contents."""

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root).expanduser().resolve()

    def config(self, name: str) -> pathlib.Path:
        return self.root / "configs" / f"{name}.json"

    def workdir(self, name: str) -> pathlib.Path:
        return self.root / "runs" / name

    def log(self, name: str) -> pathlib.Path:
        return self.root / "logs" / f"{name}.log"

    def done(self, name: str) -> dict[str, Any] | None:
        """The results of a finished run, or None if the run is not finished.

        An empty file, left by a crash of the machine, counts as missing: the run writes it again.
        """
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return files.read_json(self.workdir(name) / "done.json")
        return None

    def write_configs(self, schedule: list[Scheduled]) -> None:
        """Write each run's config; raise UserError if a run was started with a different config."""
        for scheduled in schedule:
            name = scheduled.run.name
            path, config = self.config(name), config_lib.to_dict(scheduled.config)
            begun = path.exists() and self.workdir(name).exists()
            changes = config_lib.changes(files.read_json(path), config) if begun else []
            if changes:
                raise UserError(
                    f"run {name!r} in {self.root} was started with another config "
                    f"({'; '.join(changes[:3])}); choose another --workdir"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, config)

    def lock(self) -> files.Lock:
        """A lock, also held by the runs, that stops a second sweep from starting the same runs."""
        with contextlib.suppress(OSError):  # Acquiring the lock reports the error.
            self.root.mkdir(parents=True, exist_ok=True)
        return files.Lock(self.root / "lock", "sweep")

    def outcome(self, name: str, error: str | None) -> str:
        """How a run ended: its scores, or the last lines of its log without those of XLA."""
        if not error:
            done = self.done(name)
            scores = "  ".join(f"{key} {done[key]:.2%}" for key in done if key.endswith("/top1"))
            return f"{name}: {scores} after {done['wall_minutes']:.1f} min"
        path = self.log(name)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else ["(no log)"]
        lines = [line for line in lines if line.strip() and not re.match(r"[EWI]\d{4} ", line)]
        return "\n".join([f"{name}: failed ({error}):", *lines[-5:]])

    def finish(self, name: str, wall_seconds: float, threads: int) -> None:
        """Write done.json of a finished run with the values of its row: scores, times, machine."""
        rows = writers.read_metrics(self.workdir(name))
        images = files.read_json(self.config(name))["batch_size"]
        seconds, before = 0.0, 0
        for row in rows:
            if "images_per_second" in row:
                seconds += (row["step"] - before) * images / row["images_per_second"]
                before = row["step"]
        run = files.read_rows(self.workdir(name) / "runs.jsonl")[-1]
        values = writers.read_scores(self.workdir(name), rows[-1]["step"])
        pairs = [(row["epoch"], row[CURVE]) for row in rows if CURVE in row]
        values |= {f"{CURVE} by epoch": " ".join(f"{at:g}:{top1:g}" for at, top1 in pairs)}
        values |= {"train_minutes": round(seconds / 60, 3)}
        values |= {"wall_minutes": round(wall_seconds / 60, 3), "threads": threads}
        run |= run["versions"]
        machine = ("jax", "jaxlib", "device", "devices", "cpus", "python", "commit", "time")
        values |= {key: run[key] for key in machine}
        values |= {f"{name}/identity": text for name, text in run.get("data", {}).items()}
        files.write_json(self.workdir(name) / "done.json", values)

    def write_results(self, schedule: list[Scheduled], path: pathlib.Path) -> None:
        """Write a row for each finished run to a CSV file, and keep the file's other rows."""
        rows = [each.row() | done for each in schedule if (done := self.done(each.run.name))]
        csv_rows.merge_csv(path, rows)

    def table(self, schedule: list[Scheduled]) -> rich.table.Table:
        """A table of the runs: values that differ, their state, and the top-1 of finished runs."""
        first = schedule[0].training_cost
        times = sum(scheduled.training_cost for scheduled in schedule) / first
        title = f"{len(schedule)} runs in {self.root}, {times:.1f} times the cost of the first"
        rows = [self._cells(scheduled, first) for scheduled in schedule]
        kept = [k for k in rows[0] if k in ("run", "state") or "/" in k or len(rows) == 1]
        same = {
            key: value
            for key, value in rows[0].items()
            if key not in kept and all(row.get(key) == value for row in rows)
        }
        columns = dict.fromkeys(key for row in rows for key in row if key not in same)
        caption = "the same in all: " + ", ".join(f"{key} {value}" for key, value in same.items())
        result = rich.table.Table(*columns, title=title, caption=caption if same else None)
        for row in rows:
            result.add_row(*(row.get(key, "") for key in columns))
        return result

    def _cells(self, scheduled: Scheduled, first: float) -> dict[str, str]:
        """A row of `table`; `first` is the training cost of the first run."""
        scale, cost, name = scheduled.coefficients, scheduled.cost, scheduled.run.name
        row = {"run": name, "width": f"{scale.width:.4g}", "depth": f"{scale.depth:.4g}"}
        row["pixels"] = str(scale.resolution)
        shown = ("seed", "model.width", "model.depth", "model.resolution")
        swept = {key: value for key, value in scheduled.run.overrides.items() if key not in shown}
        row |= zip(config_lib.short_names(swept), map(str, swept.values()), strict=True)
        row |= {"seed": str(scheduled.config.seed), "parameters": f"{cost.parameters:,}"}
        row["multiply-adds"] = f"{cost.multiply_adds:,}"
        row["cost"] = f"{scheduled.training_cost / first:.2f}x"
        done, begun = self.done(name) or {}, self.workdir(name).exists()
        row["state"] = "finished" if done else "started" if begun else "to do"
        return row | {key: f"{done[key]:.2%}" for key in done if key.endswith("/top1")}

    def estimate(self, schedule: list[Scheduled]) -> float | None:
        """Minutes that the unfinished runs would take one after another; None before any finishes.

        Times are assumed to be proportional to costs, as over all finished runs together.
        """
        minutes = done_cost = left = 0.0
        for scheduled in schedule:
            if done := self.done(scheduled.run.name):
                minutes += done["wall_minutes"]
                done_cost += scheduled.training_cost
            else:
                left += scheduled.training_cost
        return minutes / done_cost * left if done_cost else None

    def progress(self, schedule: list[Scheduled], pending: list[str]) -> str:
        """The state of a sweep as a line of text; `pending` are the runs that have not ended."""
        text = f"{len(schedule) - len(pending)} of {len(schedule)} runs ended"
        if minutes := self.estimate(schedule):
            text += f", {minutes:.0f} min left if run one after another"
        for name in pending:
            if rows := writers.read_metrics(self.workdir(name)):
                text += f"; {name} at epoch {rows[-1]['epoch']:.1f}"
        return text
