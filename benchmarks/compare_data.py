"""Our input pipeline beside tf.data and PyTorch: images a second, and the bars that ours must meet.

Every measurement is a process of its own. The pipelines take turns, so that the ratios of one round
hold on a noisy machine; a bar is met by the median of the rounds.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import rich.console
import rich.table
from PIL import Image

from benchmarks import measure
from effnet_jax import records
from effnet_jax.analysis import drawing

ROOT = pathlib.Path(__file__).parents[1]
PIPELINES = {"ours": "ours", "tf.data": "peer_tf_data", "torch": "peer_torch"}
POLICIES = ("none", "autoaugment")
# Images per CPU-second of ours over the peer's: at least.
BARS = {
    ("tf.data", "none"): 1.0,
    ("torch", "none"): 2.0,
    ("tf.data", "autoaugment"): 2.5,
    ("torch", "autoaugment"): 2.0,
}
AUTOAUGMENT_BAR = 0.4  # CPU time that AutoAugment adds to ours, over that without it: at most.
COLOURS = {"ours": "#D55E00", "tf.data": "#0072B2", "torch": "#AA4499"}

Rounds = dict[tuple[str, str], list[dict[str, Any]]]  # By pipeline and policy.


def run(name: str, policy: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement: what `measure.report` printed."""
    python = args.python if name == "ours" else args.peers_python
    command = [python, "-m", f"benchmarks.{PIPELINES[name]}", f"--policy={policy}"]
    command += [f"--{key}={getattr(args, key)}" for key in ("threads", "warm_up", "batches")]
    command += [f"--photos={args.photos.resolve()}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure_rounds(args: argparse.Namespace) -> Rounds:
    """All measurements, in turn."""
    rounds = {(name, policy): [] for policy in POLICIES for name in PIPELINES}
    for number in range(args.rounds):
        for (name, policy), results in rounds.items():
            results.append(run(name, policy, args))
            rate = results[-1]["images"] / results[-1]["cpu_s"]
            records.say(f"round {number + 1}/{args.rounds}: {name}, {policy}: {rate:.0f} /CPU s")
    return rounds


def seconds_per_image(results: list[dict[str, Any]], clock: str) -> list[float]:
    return [result[clock] / result["images"] for result in results]


def ratios(slower: list[dict], faster: list[dict], clock: str = "cpu_s") -> list[float]:
    """Of the times of an image, round by round."""
    pairs = zip(seconds_per_image(slower, clock), seconds_per_image(faster, clock), strict=True)
    return [one / other for one, other in pairs]


def describe_photos(folder: pathlib.Path) -> dict[str, float]:
    """How many there are, and their mean size in bytes and pixels."""
    paths = sorted(folder.glob("train/*/*.jpg"))
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = (round(statistics.mean(side)) for side in zip(*sizes, strict=True))
    mean_bytes = round(statistics.mean(path.stat().st_size for path in paths))
    return {"photos": len(paths), "bytes": mean_bytes, "width": width, "height": height}


def make_rows(rounds: Rounds, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a pipeline and policy; ratios are ours over this one, in images per second."""
    photos, machine = describe_photos(args.photos), records.describe_machine()
    rows = []
    for (name, policy), results in rounds.items():
        cpu = ratios(results, rounds["ours", policy])
        wall = ratios(results, rounds["ours", policy], "wall_s")
        added = ratios(results, rounds[name, "none"])
        clocks = {
            clock: statistics.median(seconds_per_image(results, clock))
            for clock in ("cpu_s", "wall_s")
        }
        rows.append(
            {
                "pipeline": name,
                "policy": policy,
                "version": results[0]["version"],
                "images_per_cpu_second": round(1 / clocks["cpu_s"], 1),
                "images_per_second": round(1 / clocks["wall_s"], 1),
                "ratio_median": round(statistics.median(cpu), 3),
                "ratio_min": round(min(cpu), 3),
                "ratio_max": round(max(cpu), 3),
                "wall_ratio_median": round(statistics.median(wall), 3),
                "bar": BARS.get((name, policy)),
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
        if row["pipeline"] == "ours" and row["added_by_policy"] > AUTOAUGMENT_BAR:
            missed.append(f"AutoAugment adds {row['added_by_policy']:.0%} > {AUTOAUGMENT_BAR:.0%}")
    return missed


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The rows for a person."""
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
            row["pipeline"],
            row["policy"],
            f"{row['images_per_cpu_second']:.0f}",
            f"{row['images_per_second']:.0f}",
            "" if row["pipeline"] == "ours" else spread,
            f"{row['bar']}" if row["bar"] else "",
            f"{row['added_by_policy']:.0%}" if row["policy"] != "none" else "",
        )
    return table


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Images per CPU-second as bars, by policy and pipeline."""
    figure, axes = drawing.new_figure(height=3.2)
    labels = {"none": "crop and flip", "autoaugment": "with AutoAugment"}
    for place, row in enumerate(rows):
        x = place % len(PIPELINES) + (len(PIPELINES) + 1) * POLICIES.index(row["policy"])
        bar = axes.bar(x, row["images_per_cpu_second"], color=COLOURS[row["pipeline"]])
        axes.bar_label(bar, [f"{row['images_per_cpu_second']:.0f}"], fontsize=drawing.TEXT)
        axes.annotate(
            row["pipeline"],
            (x, 0),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color="white",
            fontsize=drawing.SMALL,
        )
    middles = [1 + (len(PIPELINES) + 1) * number for number in range(len(POLICIES))]
    axes.set_xticks(middles, [labels[policy] for policy in POLICIES], fontsize=drawing.TEXT)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("images per CPU-second", fontsize=drawing.TEXT)
    figure.savefig(path, dpi=drawing.DPI)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=pathlib.Path, required=True, help="of make_photos.py")
    parser.add_argument("--python", default=sys.executable, help="interpreter for ours")
    parser.add_argument("--peers_python", required=True, help="interpreter for the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="or worker processes, for each")
    parser.add_argument("--warm_up", type=int, default=8, help="batches that are not counted")
    parser.add_argument("--batches", type=int, default=24, help="batches that are")
    parser.add_argument("--csv", type=pathlib.Path, help="append the rows; a .png is put beside it")
    args = parser.parse_args()
    rows = make_rows(measure_rounds(args), args)
    rich.console.Console(width=100).print(show(rows))
    if args.csv:
        records.append_csv(args.csv, rows)
        draw(rows, args.csv.with_suffix(".png"))
    missed = failures(rows)
    for line in missed:
        records.say(f"missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
