"""Compare our input pipeline with tf.data and PyTorch: images per second, and bars for the ratios.

Each measurement runs in a separate process. The pipelines take turns, so that the ratios within a
round are valid on a noisy machine. The median over the rounds has to meet a bar.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

import rich.console
import rich.table
from PIL import Image

from benchmarks import bars, measure
from effnet_jax import csv_rows
from effnet_jax.report import drawing
from effnet_jax.run import writers

ROOT = pathlib.Path(__file__).parents[1]


class Contender(NamedTuple):
    """One pipeline with one policy, which makes one row.

    Attributes:
      pipeline: the name of the pipeline.
      policy: "none" or "autoaugment".
      form: distinguishes contenders with the same pipeline and policy.
      bar: the least ratio of our images per CPU-second to this contender's.
      module: the module in this folder that measures it.
      flags: flags of the module in addition to those of all contenders.
    """

    pipeline: str
    policy: str
    form: str
    bar: float | None
    module: str
    flags: tuple[str, ...] = ()


WHOLE = "whole images decoded"
REFERENCE = "reference's operations"
CONTENDERS = (
    Contender("ours", "none", "", None, "ours"),
    Contender("ours", "none", WHOLE, None, "ours", ("--whole_images",)),
    Contender("tf.data", "none", "", 1.3, "peer_tf_data"),
    Contender("torch", "none", "", 2.0, "peer_torch"),
    Contender("ours", "autoaugment", "", None, "ours"),
    Contender("ours", "autoaugment", WHOLE, None, "ours", ("--whole_images",)),
    Contender("tf.data", "autoaugment", REFERENCE, 2.4, "peer_tf_data"),
    Contender(
        "tf.data",
        "autoaugment",
        "faster operations",
        None,
        "peer_tf_data",
        ("--operations=faster",),
    ),
    Contender("torch", "autoaugment", "", 2.0, "peer_torch"),
)
AUTOAUGMENT_BAR = 0.4  # The most CPU time that AutoAugment may add, as a share of ours without it.
COLOURS = {"ours": "#D55E00", "tf.data": "#0072B2", "torch": "#AA4499"}

Rounds = dict[Contender, list[dict[str, Any]]]


def run(contender: Contender, args: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement; return what `measure.report` printed."""
    python = args.python if contender.pipeline == "ours" else args.peers_python
    command = [python, "-m", f"benchmarks.{contender.module}", f"--policy={contender.policy}"]
    command += [f"--{key}={getattr(args, key)}" for key in ("threads", "warm_up", "batches")]
    command += [f"--photos={args.photos.resolve()}", *contender.flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure_rounds(args: argparse.Namespace) -> Rounds:
    """Run all measurements, with the contenders taking turns."""
    rounds = {each: [] for each in CONTENDERS if args.whole_images or each.form != WHOLE}
    for number in range(args.rounds):
        for contender, results in rounds.items():
            results.append(run(contender, args))
            rate = results[-1]["images"] / results[-1]["cpu_s"]
            name = f"{label(contender.pipeline, contender.form)}, {contender.policy}"
            writers.say(f"round {number + 1}/{args.rounds}: {name}: {rate:.0f} /CPU s")
    return rounds


def label(pipeline: str, form: str) -> str:
    return f"{pipeline}, {form}" if form else pipeline


def find(rounds: Rounds, pipeline: str, policy: str, form: str = "") -> list[dict[str, Any]]:
    """Results of the contender with this form, or without a form if there is none with it."""
    found = {
        each.form: results for each, results in rounds.items() if each[:2] == (pipeline, policy)
    }
    return found.get(form, found[""])


def seconds_per_image(results: list[dict[str, Any]], clock: str) -> list[float]:
    return [result[clock] / result["images"] for result in results]


def ratios(slower: list[dict], faster: list[dict], clock: str = "cpu_s") -> list[float]:
    """The ratio of the times per image in each round."""
    pairs = zip(seconds_per_image(slower, clock), seconds_per_image(faster, clock), strict=True)
    return [one / other for one, other in pairs]


def describe_photos(folder: pathlib.Path) -> dict[str, float]:
    """The number of photographs and their mean size in bytes and pixels."""
    paths = sorted(folder.glob("train/*/*.jpg"))
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = (round(statistics.mean(side)) for side in zip(*sizes, strict=True))
    mean_bytes = round(statistics.mean(path.stat().st_size for path in paths))
    return {"photos": len(paths), "bytes": mean_bytes, "width": width, "height": height}


def make_rows(rounds: Rounds, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per contender; ratios are our images per second over the contender's."""
    photos, machine = describe_photos(args.photos), csv_rows.describe_machine()
    rows = []
    for contender, results in rounds.items():
        of_ours = find(rounds, "ours", contender.policy)
        cpu, wall = ratios(results, of_ours), ratios(results, of_ours, "wall_s")
        added = ratios(results, find(rounds, contender.pipeline, "none", contender.form))
        clocks = {
            clock: statistics.median(seconds_per_image(results, clock))
            for clock in ("cpu_s", "wall_s")
        }
        rows.append(
            {
                "pipeline": contender.pipeline,
                "policy": contender.policy,
                "form": contender.form,
                "version": results[0]["version"],
                "crop_decode": results[0]["crop_decode"],
                "images_per_cpu_second": round(1 / clocks["cpu_s"], 1),
                "images_per_second": round(1 / clocks["wall_s"], 1),
                "ratio_median": round(statistics.median(cpu), 3),
                "ratio_min": round(min(cpu), 3),
                "ratio_max": round(max(cpu), 3),
                "wall_ratio_median": round(statistics.median(wall), 3),
                "bar": contender.bar,
                "added_by_policy": round(statistics.median(added) - 1, 3),
                "threads": args.threads,
                "batch": measure.BATCH_SIZE,
                "resolution": measure.RESOLUTION,
                "images": results[0]["images"],
                "rounds": len(results),
                **photos,
                **machine,
            }
        )
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """The bars that were missed."""
    missed = [
        f"ours / {row['pipeline']}, {row['policy']}: {row['ratio_median']:.2f} < {row['bar']}"
        for row in rows
        if row["bar"] and row["ratio_median"] < row["bar"]
    ]
    for row in rows:
        is_ours = row["pipeline"] == "ours" and not row["form"]
        if is_ours and row["added_by_policy"] > AUTOAUGMENT_BAR:
            missed.append(f"AutoAugment adds {row['added_by_policy']:.0%} > {AUTOAUGMENT_BAR:.0%}")
    return missed


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    first = rows[0]
    table = rich.table.Table(
        *("", "policy", "images / CPU s", "images / s", "ours / this (min to max)", "bar"),
        *("policy adds",),
        title=f"{first['photos']} JPEGs, mean {first['bytes'] / 1000:.1f} kB and "
        f"{first['width']}x{first['height']}; {first['threads']} threads",
    )
    for row in rows:
        spread = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        table.add_row(
            label(row["pipeline"], row["form"]),
            row["policy"],
            f"{row['images_per_cpu_second']:.0f}",
            f"{row['images_per_second']:.0f}",
            "" if label(row["pipeline"], row["form"]) == "ours" else spread,
            f"{row['bar']}" if row["bar"] else "",
            f"{row['added_by_policy']:.0%}" if row["policy"] != "none" else "",
        )
    return table


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw images per CPU-second as bars, by policy and contender."""
    policies = {"none": "crop and flip", "autoaugment": "with AutoAugment"}
    grouped = [[row for row in rows if row["policy"] == policy] for policy in policies]
    figure, panels = drawing.new_figure(
        height=0.9 + 0.4 * len(rows),
        rows=len(policies),
        sharex=True,
        height_ratios=[len(group) for group in grouped],
    )
    for axes, group, title in zip(panels, grouped, policies.values(), strict=True):
        rates = [row["images_per_cpu_second"] for row in group]
        bars = axes.barh(range(len(group)), rates, color=[COLOURS[r["pipeline"]] for r in group])
        axes.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=3, fontsize=drawing.SMALL)
        names = [label(row["pipeline"], row["form"]).replace(", ", ",\n") for row in group]
        axes.set_yticks(range(len(group)), names)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_title(title, fontsize=drawing.TEXT, loc="left")
    panels[-1].set_xlabel("images per CPU-second", fontsize=drawing.TEXT)
    figure.savefig(path, dpi=drawing.DPI)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=pathlib.Path, required=True, help="from make_photos.py")
    parser.add_argument("--python", default=sys.executable, help="interpreter for ours")
    parser.add_argument("--peers_python", required=True, help="interpreter for the peers")
    parser.add_argument(
        "--whole_images", action="store_true", help="also measure ours without libturbojpeg 3"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="threads or workers of a pipeline")
    parser.add_argument("--warm_up", type=int, default=8, help="batches before those measured")
    parser.add_argument("--batches", type=int, default=60, help="batches to measure")
    parser.add_argument("--csv", type=pathlib.Path, help="append the rows, and draw FILE.png")
    args = parser.parse_args()
    rows = make_rows(measure_rounds(args), args)
    rich.console.Console(width=100).print(show(rows))
    if args.csv:
        csv_rows.append_csv(args.csv, rows)
        draw(rows, args.csv.with_suffix(".png"))
    return bars.report(failures(rows))


if __name__ == "__main__":
    sys.exit(main())
