"""Measures how long whole commands take, from --help to an evaluation.

Examples:
  python -m benchmarks waits --csv=results/waits.csv
  python -m benchmarks waits --model=lite0 --against=../older

Each command is a separate process: --help, summary, predict of one image and eval of 100 images,
with random weights. "cold" starts with an empty compilation cache, and "warm" finds the programs of
the cold run in it. With --against=DIR the two checkouts take turns, and ratios are taken within a
turn.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import cv2
import jax
import numpy as np
import rich.table

from effnet_jax import config as config_lib
from effnet_jax import csv_rows, flags, models, weights
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.run import writers

ROOT = pathlib.Path(__file__).parents[1]
IMAGES, CLASSES = 100, 10
PARSER = flags.Parser(__doc__)
add = PARSER.group("measurement")
add("--model", default="b0")
add("--against", type=pathlib.Path, metavar="DIR", help="another checkout of this package")
add("--turns", type=flags.count, default=5)


def make_inputs(model: str, folder: pathlib.Path) -> dict[str, list[str]]:
    """Writes weights and photograph-sized images to a folder; the commands that read them."""
    rng, images = np.random.default_rng(0), folder / "images"
    for number in range(IMAGES):
        path = images / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (24, 32, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(small, (500, 375), interpolation=cv2.INTER_CUBIC))
    config = config_lib.get_config(model)
    config.model.num_classes = CLASSES
    network = models.build(config.model)
    size = network.architecture.resolution
    initial = jax.jit(lambda key: models.init_variables(network, size, key))(jax.random.key(0))
    initial = jax.tree.map(np.asarray, initial)
    names = [f"class{number}" for number in range(CLASSES)]
    settings = Preprocess.from_config(config.preprocess, size)
    file = folder / "weights.safetensors"
    weights.save(file, weights.Weights(config.model, initial, settings, names, "ours"))
    return {
        "--help": ["--help"],
        "summary": ["summary", model],
        "predict, 1 image": ["predict", str(path), f"--weights={file}"],
        f"eval, {IMAGES} images": ["eval", f"--weights={file}", f"--data_dir={images}"],
    }


def seconds(root: pathlib.Path, arguments: list[str], cache: str) -> float:
    """Time of one command of the checkout `root`, which has to succeed."""
    command = [sys.executable, "-m", "effnet_jax", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_COMPILATION_CACHE_DIR": cache}
    start = time.perf_counter()
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{command} ended with code {ended.returncode}:\n{ended.stderr}")
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each command, cold and warm; `ratio` is this checkout's time over the other's."""
    roots, rows = [ROOT, *filter(None, [args.against])], []
    with tempfile.TemporaryDirectory() as folder:
        commands = make_inputs(args.model, pathlib.Path(folder))
        for name, arguments in commands.items():
            times = {(root, cache): [] for cache in ("cold", "warm") for root in roots}
            for _ in range(args.turns):
                for root in roots:
                    with tempfile.TemporaryDirectory() as cache:
                        for state in ("cold", "warm"):
                            times[root, state].append(seconds(root, arguments, cache))
            for state in ("cold", "warm"):
                rows.append(_row(name, state, [times[root, state] for root in roots], args))
                writers.say(f"{name}, {state}: {rows[-1]['seconds']:.2f} s")
    return rows


def _row(
    name: str, state: str, times: list[list[float]], args: argparse.Namespace
) -> dict[str, Any]:
    own, other = times[0], times[-1]
    ratios = [ours / theirs for ours, theirs in zip(own, other, strict=True)]
    row = {"command": name, "model": args.model, "cache": state}
    row |= {"seconds": round(statistics.median(own), 2), "turns": args.turns}
    if len(times) > 1:
        row |= {"seconds_against": round(statistics.median(other), 2)}
        row |= {"ratio_median": round(statistics.median(ratios), 3)}
        row |= {"ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3)}
    return row | csv_rows.describe_machine()


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The rows for a person."""
    table = rich.table.Table("command", "cache", "seconds", "against", "ratio (min to max)")
    for row in rows:
        ratio = "{ratio_median:.2f} ({ratio_min:.2f} to {ratio_max:.2f})"
        compared = "ratio_median" in row
        cells = (f"{row['seconds_against']:.2f}", ratio.format(**row)) if compared else ("", "")
        table.add_row(row["command"], row["cache"], f"{row['seconds']:.2f}", *cells)
    return table
