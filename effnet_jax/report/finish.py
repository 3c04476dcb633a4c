"""The summary of a finished run: its scores, where its time went, and its curves."""

import collections
import contextlib
import itertools
import math
import pathlib
from typing import Any

import rich.box
import rich.table

from effnet_jax import config as config_lib
from effnet_jax import evaluation
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.report import curves, details
from effnet_jax.run import files, workdirs, writers
from effnet_jax.training import evaluations
from effnet_jax.training.clock import BINS, CATEGORIES, FILE, REPEATED


def show(workdir: str | pathlib.Path, step: int, scores: dict[str, float]) -> None:
    """Print the last step and scores of a finished run and where its time went; draw its curves."""
    with workdirs.opened(workdir) as place:
        _show(place, step, scores)


def _show(place: workdirs.Workdir, step: int, scores: dict[str, float]) -> None:
    workdir = place.folder
    path, rows = workdir / "curves.png", files.read_rows(workdir / FILE)
    top1 = [f"{key.removesuffix('/top1')} {scores[key]:.2%}" for key in scores if "/top1" in key]
    title = ", ".join([f"{workdir.resolve().name} at step {step}", *top1[:4]])
    with contextlib.suppress(OSError):  # The run is saved, so a full disk must not fail it now.
        curves.draw_curves(writers.read_metrics(workdir), path, title)
    begun = max((i for i, row in enumerate(rows) if row.get("event") == "start"), default=0)
    minutes = sum(sum(row["seconds"].values()) for row in rows[begun:]) / 60
    classes, name = len(files.read_json(workdir / "classes.json")), f"step {step}"
    writers.console.print(result_table(scores, f"{name}, {minutes:.1f} min in this run", classes))
    writers.console.print(time_table(rows))
    if any("step_times" in row for row in rows):  # Older versions did not record them.
        writers.console.print(step_table(rows))
    if shown := show_details(workdir, step):
        writers.say(shown)
    writers.say(f"curves: {place.address / path.name}   all other files: {place.address}")


def show_details(workdir: pathlib.Path, step: int) -> str:
    """Write the details of the evaluation of `best_metric`, and return a message.

    Returns "" without details: the evaluation did not run at this step or uses sets of labels.
    """
    saved = evaluation.read_outcomes(workdir / evaluations.OUTCOMES)
    if saved is None or saved[0] != step:
        return ""
    config = config_lib.load(workdir)
    which = config.checkpoint.best_metric.rpartition("/")[0]
    data = config_lib.for_evaluation(config, which.partition("/")[0]).data
    classes = files.read_json(workdir / "classes.json")
    title = f"{workdir.resolve().name} at step {step}, {which}"
    try:  # The run is saved, so missing data or a full disk must not fail it now.
        source = sources.open_source(data, sources.eval_split(data, config.data.data_dir))
        details.write(workdir, title, classes, saved[1], source, data.exif)
    except (OSError, ValueError, UserError) as error:
        return f"can't write the details of {which}: {error}"
    return f"{which} by class: {', '.join(details.FILES)}"


def result_table(scores: dict[str, float], title: str, classes: int) -> rich.table.Table:
    """A table of top-1, top-5, mean per class, loss and count by evaluation and weights.

    Top-5 is left out for five classes or fewer, for which it is always 100 %.
    """
    columns = ("evaluation", "top-1", *(["top-5"] if classes > 5 else []))
    table = rich.table.Table(*columns, "mean per class", "loss", "images", title=title)
    for name in dict.fromkeys(key.rpartition("/")[0] for key in scores):
        top1, top5, count = (scores[f"{name}/{key}"] for key in ("top1", "top5", "count"))
        loss, mean = (scores.get(f"{name}/{key}") for key in ("loss", "mean_per_class"))
        shown = "" if mean is None else f"{mean:.2%}", "" if loss is None else f"{loss:.4f}"
        best = f"{top1:.2%}", *([f"{top5:.2%}"] if classes > 5 else [])
        table.add_row(name, *best, *shown, str(count))
    return table


def account(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by category over all rows of goodput.jsonl, and "downtime" before the restarts."""
    total = collections.Counter(dict.fromkeys((*CATEGORIES, "downtime"), 0.0))
    back = math.inf  # The earliest step to which a later start or roll-back returned.
    for row in reversed(rows):
        for name, seconds in row["seconds"].items():
            total["rework" if row["step"] > back and name in REPEATED else name] += seconds
        if "event" in row:
            back = min(back, row["step"])
    for before, row in itertools.pairwise(rows):
        if row.get("event") == "start":
            begun = row["time"] - sum(row["seconds"].values())
            total["downtime"] += max(0.0, begun - before["time"])
    return dict(total)


def time_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of time and share by category since the run's first start, and the goodput."""
    seconds = account(rows)
    downtime = seconds.pop("downtime")
    whole = sum(seconds.values()) or 1.0
    events = collections.Counter(row.get("event") for row in rows)
    happened = f"{events['start']} start(s), {events['rollback']} roll-back(s)"
    title = f"goodput {seconds['step'] / whole:.1%}: {happened}"
    result = rich.table.Table("time", "seconds", "share", title=title, box=rich.box.SIMPLE_HEAD)
    for key, name in CATEGORIES.items():
        result.add_row(name, f"{seconds[key]:,.1f}", f"{seconds[key] / whole:.1%}")
    result.add_row("not running, between starts", f"{downtime:,.1f}", "")
    return result


def step_table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A histogram of step times since the run's first start, including repeated steps."""
    counts = collections.Counter()
    for row in rows:
        counts.update({int(key): n for key, n in row.get("step_times", {}).items()})
    title = f"times of {counts.total():,} steps, including waiting for data"
    result = rich.table.Table("seconds", "steps", "", title=title, box=rich.box.SIMPLE_HEAD)
    for key in sorted(counts):
        low, high = (2 ** ((key + side) / BINS) for side in (-0.5, 0.5))
        bar = "█" * math.ceil(40 * counts[key] / max(counts.values()))
        result.add_row(f"{low:.3g} to {high:.3g}", f"{counts[key]:,}", bar)
    return result
