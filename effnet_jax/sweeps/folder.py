"""The folder of a sweep: configs, logs and workdirs of its runs, and the table of results.

DIR/configs/NAME.json   the run's whole config, written before it starts
DIR/runs/NAME/          its workdir, as train.py makes it
DIR/logs/NAME.log       what it printed
DIR/runs/NAME/done.json how it went; there only when it is finished
DIR/results.csv         a row a finished run
"""

import contextlib
import csv
import fcntl
import io
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import psutil

from effnet_jax import config as config_lib
from effnet_jax.errors import UserError
from effnet_jax.run import files, writers
from effnet_jax.sweeps.schedule import Planned

METRICS = ("raw_top1", "raw_top5", "ema_top1", "ema_top5")


class Folder:
    """Where a sweep lives; all of its paths and states in one place."""

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root).expanduser().resolve()

    def config(self, name: str) -> pathlib.Path:
        return self.root / "configs" / f"{name}.json"

    def workdir(self, name: str) -> pathlib.Path:
        return self.root / "runs" / name

    def log(self, name: str) -> pathlib.Path:
        return self.root / "logs" / f"{name}.log"

    def done(self, name: str) -> dict[str, Any] | None:
        """How a finished run went, None for all others."""
        path = self.workdir(name) / "done.json"
        return files.read_json(path) if path.exists() else None

    def write_configs(self, plan: list[Planned]) -> None:
        """Writes each run's config; refuses to change that of a run which has begun."""
        for planned in plan:
            path = self.config(planned.run.name)
            config = json.loads(planned.config.to_json_best_effort())
            begun = path.exists() and self.workdir(planned.run.name).exists()
            changes = config_lib.changes(files.read_json(path), config) if begun else []
            if changes:
                raise UserError(
                    f"run {planned.run.name!r} in {self.root} has begun with another config "
                    f"({'; '.join(changes[:3])}); give another --workdir"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, config)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Holds the folder, so that no second sweep starts the same runs; gives the lock's file.

        Runs that inherit the file hold it too. Those of a sweep that was killed save and stop,
        after their compilation where they are at that; a new sweep waits for them.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = open(self.root / "lock", "a+")  # noqa: SIM115 - closed below.
        except OSError as error:
            raise UserError(f"can't write to --workdir={self.root}: {error.strerror}") from None
        with file:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    file.seek(0)
                    holder = file.read().strip()
                    process, _, host = holder.removeprefix("process ").partition(" on ")
                    here = host == os.uname().nodename and process.isdecimal()
                    if not (here and not psutil.pid_exists(int(process))):
                        raise UserError(
                            f"another sweep works in {self.root} ({holder}); wait for it, stop it, "
                            "or give another --workdir"
                        ) from None
                    if not told:
                        writers.say("runs of a sweep that was killed are still saving; waiting")
                        told = True
                    time.sleep(0.2)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
            yield file.fileno()

    def check_csv(self, path: pathlib.Path) -> None:
        """Raises UserError where the table can't be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UserError(f"can't write to --csv={path}: {error.strerror}") from None
        if path.is_dir():
            raise UserError(f"--csv={path} is a folder; it should be a file")

    def last_lines(self, name: str, count: int = 5) -> str:
        """The end of a run's log, for a message; without what XLA logs of itself."""
        path = self.log(name)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        lines = [line for line in lines if line.strip() and not re.match(r"[EWI]\d{4} ", line)]
        return "\n".join(lines[-count:]) or "(no log)"

    def finish(self, name: str, wall_seconds: float, threads: int) -> None:
        """Notes that a run is finished, with what its row needs."""
        rows = writers.read_metrics(self.workdir(name))
        scores = next(row for row in reversed(rows) if "ema_top1" in row)
        images = files.read_json(self.config(name))["batch_size"]
        windows = [row for row in rows if "images_per_second" in row]
        seconds, before = 0.0, 0
        for row in windows:
            seconds += (row["step"] - before) * images / row["images_per_second"]
            before = row["step"]
        last = (self.workdir(name) / "runs.jsonl").read_text().splitlines()[-1]
        run = json.loads(last)
        values = {key: scores[key] for key in METRICS}
        values |= {"count": scores["ema_count"], "train_minutes": round(seconds / 60, 3)}
        values |= {"wall_minutes": round(wall_seconds / 60, 3), "threads": threads}
        values |= {key: run["versions"][key] for key in ("jax", "jaxlib")}
        values |= {key: run[key] for key in ("device", "devices", "cpus", "python", "commit")}
        values |= {"time": run["time"]}
        path = self.workdir(name) / "done.json"
        files.write_json(path, values)

    def rows(self, plan: list[Planned]) -> list[dict[str, Any]]:
        """The table: what each finished run was and how it went, in the plan's order."""
        rows = []
        for planned in plan:
            done = self.done(planned.run.name)
            if done is None:
                continue
            config, model = planned.config, planned.config.model
            rows.append(
                {
                    "config": planned.experiment,
                    "sweep": planned.sweep,
                    "name": planned.run.name,
                    "series": planned.run.series,
                    "label": planned.run.label,
                    "data": f"{config.data.name}/{config.data.eval_split}",
                    "seed": config.seed,
                    "base": model.base,
                    "phi": model.phi,
                    **{key: model[key] for key in ("alpha", "beta", "gamma")},
                    "width": round(planned.coefficients.width, 6),
                    "depth": round(planned.coefficients.depth, 6),
                    "resolution": planned.coefficients.resolution,
                    "parameters": planned.cost.parameters,
                    "multiply_adds": planned.cost.multiply_adds,
                    "epochs": config.epochs,
                    "batch_size": config.batch_size,
                    **done,
                }
            )
        return rows

    def write_results(self, plan: list[Planned], path: pathlib.Path) -> None:
        """Writes the table as CSV, the whole of it anew."""
        rows = self.rows(plan)
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, text.getvalue())
