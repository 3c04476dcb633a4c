"""The folder of a sweep: configs, logs and workdirs of its runs, and the table of results.

DIR/configs/NAME.json   the run's whole config, written before it starts
DIR/runs/NAME/          its workdir
DIR/logs/NAME.log       its output
DIR/runs/NAME/done.json scores, times and machine, once it is finished
DIR/results.csv         a row for each finished run
"""

import contextlib
import csv
import io
import pathlib
import re
from typing import Any

from effnet_jax import config as config_lib
from effnet_jax.errors import UserError
from effnet_jax.run import files, writers
from effnet_jax.sweeps.schedule import Scheduled


class Folder:
    """The paths of a sweep, and what is in them."""

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root).expanduser().resolve()

    def config(self, name: str) -> pathlib.Path:
        return self.root / "configs" / f"{name}.json"

    def workdir(self, name: str) -> pathlib.Path:
        return self.root / "runs" / name

    def log(self, name: str) -> pathlib.Path:
        return self.root / "logs" / f"{name}.log"

    def done(self, name: str) -> dict[str, Any] | None:
        """The results of a finished run; None for any other."""
        path = self.workdir(name) / "done.json"
        return files.read_json(path) if path.exists() else None

    def write_configs(self, schedule: list[Scheduled]) -> None:
        """Writes each run's config; raises UserError for another config of a run that has begun."""
        for scheduled in schedule:
            name = scheduled.run.name
            path, config = self.config(name), config_lib.to_dict(scheduled.config)
            begun = path.exists() and self.workdir(name).exists()
            changes = config_lib.changes(files.read_json(path), config) if begun else []
            if changes:
                raise UserError(
                    f"run {name!r} in {self.root} has begun with another config "
                    f"({'; '.join(changes[:3])}); give another --workdir"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, config)

    def lock(self) -> files.Lock:
        """Keeps a second sweep from starting the same runs; a context, and the runs hold it too."""
        with contextlib.suppress(OSError):  # The lock says what is wrong.
            self.root.mkdir(parents=True, exist_ok=True)
        return files.Lock(self.root / "lock", "sweep")

    def outcome(self, name: str, error: str | None) -> str:
        """How a run ended: its scores, or the end of its log without XLA's own lines."""
        if not error:
            done = self.done(name)
            scores = "  ".join(f"{key} {done[key]:.2%}" for key in done if key.endswith("/top1"))
            return f"{name}: {scores} after {done['wall_minutes']:.1f} min"
        path = self.log(name)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else ["(no log)"]
        lines = [line for line in lines if line.strip() and not re.match(r"[EWI]\d{4} ", line)]
        return "\n".join([f"{name}: failed ({error}):", *lines[-5:]])

    def finish(self, name: str, wall_seconds: float, threads: int) -> None:
        """Notes that a run is finished, with the values of its row: scores, times, machine."""
        rows = writers.read_metrics(self.workdir(name))
        images = files.read_json(self.config(name))["batch_size"]
        seconds, before = 0.0, 0
        for row in rows:
            if "images_per_second" in row:
                seconds += (row["step"] - before) * images / row["images_per_second"]
                before = row["step"]
        run = files.read_rows(self.workdir(name) / "runs.jsonl")[-1]
        values = writers.read_scores(self.workdir(name), rows[-1]["step"])
        values |= {"train_minutes": round(seconds / 60, 3)}
        values |= {"wall_minutes": round(wall_seconds / 60, 3), "threads": threads}
        values |= {key: run["versions"][key] for key in ("jax", "jaxlib")}
        values |= {key: run[key] for key in ("device", "devices", "cpus", "python", "commit")}
        files.write_json(self.workdir(name) / "done.json", {**values, "time": run["time"]})

    def write_results(self, schedule: list[Scheduled], path: pathlib.Path) -> None:
        """Writes a row for each finished run, in the order of the schedule, to a CSV file."""
        done = {scheduled.run.name: self.done(scheduled.run.name) for scheduled in schedule}
        rows = [each.row() | done[each.run.name] for each in schedule if done[each.run.name]]
        text = io.StringIO()
        if rows:
            columns = dict.fromkeys(key for row in rows for key in row)
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(path, text.getvalue())
        except OSError as error:
            raise UserError(f"can't write to --csv={path}: {error.strerror}") from None
