"""Evaluates every weight file in a folder next to its published accuracy: the paper's Table 2.

Examples:
  effnet-jax reproduce --weights=FOLDER --data_dir=DIR
  effnet-jax reproduce --weights=FOLDER --data_dir=DIR --data=imagenet_a --csv=results/a.csv

FOLDER has weight files at any depth: .safetensors, .npz, .pth, .pt, .bin, .h5 and TensorFlow
checkpoints. The published accuracy is found by the name of the file, such as timm's
tf_efficientnet_b0.aa_in1k.safetensors, torchvision's efficientnet_v2_s-dd5fe13b.pth or
efficientnet-lite0-57934424.pth; or by its folder, such as ckptsaug/efficientnet-b0. Files with
other names are evaluated too.

The CSV file gets a row for each weight file. After an interruption, the same command continues: a
file with a row of the same checksum is skipped. A file that can't be read is reported, and the exit
code is 1.
"""

import argparse
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import rich.console
import rich.progress
import rich.table

from effnet_jax import flags
from effnet_jax.errors import RunsFailed, UserError
from effnet_jax.report.tables import down
from effnet_jax.tools import show

PARSER = flags.Parser(__doc__, buckets=("csv",))
add = PARSER.group("weights")
folder = ": a folder with weight files"
add("--weights", required=True, type=pathlib.Path, metavar="FOLDER", help=folder)
kinds = ": for files that don't state them, as in convert"
add("--classes", default="imagenet", help=kinds)
add = PARSER.group("data")
flags.add_data(add, default="imagenet")
add = PARSER.group("output")
add("--csv", default="results/reproduced.csv", type=flags.path)

COLUMNS = ("file", "sha256", "model", "resolution", "top1", "top5", "count")
COLUMNS += ("published_top1", "published_top5", "difference", "source")


def evaluate(path: pathlib.Path, source: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates a weight file; returns the columns that the result adds to its row."""
    from effnet_jax import evaluation, models
    from effnet_jax.imagenet import variants
    from effnet_jax.report import paper
    from effnet_jax.run import processes
    from effnet_jax.weights import folder

    names = folder.names(path)
    found = folder.load_named(path, args.classes, **paper.load_options(names))
    config = variants.choose_data(found, None, args.data, args.data_dir)
    console = rich.console.Console(stderr=True)
    hidden = not console.is_terminal
    with rich.progress.Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(path.name, total=len(source))

        class Shown(processes.Alone):
            def at(self, phase: str, step: int = 0) -> None:
                bar.update(task, completed=step * config.eval_batch_size)

        data = {args.data: source}
        ((_, result),) = evaluation.evaluate(found, config, data, path.name, Shown())
    scale = models.coefficients(found.config)
    known = paper.released(names, args.data, scale.resolution)
    printed = {key: float(known[key]) if known.get(key) else None for key in ("top1", "top5")}
    top1, top5 = (value if value is None else round(value / 100, 6) for value in printed.values())
    return {
        "model": paper.label(found.config.base, **vars(scale)),
        "resolution": scale.resolution,
        **{key: result[key] for key in ("top1", "top5", "count")},
        "published_top1": top1,
        "published_top5": top5,
        "difference": None if top1 is None else result["top1"] - top1,
        "source": known.get("source"),
    }


def rows(
    paths: list[pathlib.Path], args: argparse.Namespace, failed: list[str]
) -> Iterator[dict[str, str]]:
    """Yields a row for each file, earlier or new; adds files that can't be read to `failed`."""
    from effnet_jax import csv_rows
    from effnet_jax.data import sources
    from effnet_jax.imagenet import variants
    from effnet_jax.run import files
    from effnet_jax.weights import folder

    chosen = variants.load_evaluation_set(args.data)
    if chosen.corruptions:
        raise UserError(f"--data={args.data} has several parts; evaluate weights on it with eval")
    chosen.data.data_dir = args.data_dir or chosen.data.data_dir
    chosen.data.eval_split = sources.eval_split(chosen.data, None)
    source, machine = variants.open_source(chosen.data), csv_rows.describe_machine()
    if chosen.images and len(source) != chosen.images:
        count = f"{len(source):,} of the {chosen.images:,} images"
        print(f"{args.data} has {count}: differences from published accuracies mean little")
    place = {"data": args.data, "identity": sources.identity(source)}
    csv_rows.check_append(args.csv, (*place, *COLUMNS, *machine))
    found = csv_rows.read(args.csv)[1] if files.is_file(args.csv) else []
    done = {}
    for row, where in found:
        for key in ("top1", "published_top1") if row["published_top1"] else ("top1",):
            csv_rows.fraction(row, key, where)
        done[tuple(row[key] for key in (*place, *COLUMNS[:2]))] = row
    for number, path in enumerate(paths, 1):
        file, start = str(path.relative_to(args.weights)), time.perf_counter()
        row, line = (
            place | {"file": file, "sha256": folder.checksum(path)},
            f"{number} of {len(paths)}: ",
        )
        if tuple(row.values()) in done:
            print(f"{line}{file} is done already")
            yield done[tuple(row.values())]
            continue
        try:
            row |= evaluate(path, source, args) | csv_rows.describe_machine()
        except UserError as error:
            print(f"{line}{file} failed: {error}", flush=True)
            failed.append(file)
            continue
        csv_rows.append_csv(args.csv, [row])
        seconds = time.perf_counter() - start
        print(f"{line}{file}: top-1 {row['top1']:.2%}, {seconds:.0f} s", flush=True)
        yield {key: "" if value is None else str(value) for key, value in row.items()}


def table(found: list[dict[str, str]]) -> rich.table.Table:
    """A table of the measured accuracies, rounded down, and the published ones, in percent."""
    shown = rich.table.Table("model", "file", "px", "top-1", "published", "difference", "source")
    for row in found:
        published, difference = "", ""
        if row["published_top1"]:
            published = f"{100 * float(row['published_top1']):.2f}"
            difference = f"{100 * (float(row['top1']) - float(row['published_top1'])):+.2f}"
        measured = down(100 * float(row["top1"]))
        cells = (row["model"], row["file"], row["resolution"], measured, published, difference)
        shown.add_row(*cells, row["source"])
    return shown


def main(args: argparse.Namespace) -> None:
    from effnet_jax.weights import folder

    if not args.weights.is_dir():
        raise UserError(f"--weights={args.weights} is not a folder")
    paths, failed = folder.list_files(args.weights), []
    found = list(rows(paths, args, failed))
    if found:
        show(table(found))
    if unknown := [row["file"] for row in found if not row["published_top1"]]:
        print(
            f"no published accuracy on {args.data} is known for the name and resolution of "
            f"{len(unknown)} files: {', '.join(unknown)}"
        )
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(paths)} files failed: {', '.join(failed)}")
