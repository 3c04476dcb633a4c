"""Measures a training pipeline without a model: images per second and per CPU-second.

Examples:
  python -m benchmarks data --config=digits --num_images=1024
  python -m benchmarks data --config=configs/imagenet.py:b0 --config.data.data_dir=DIR

Also shows where the time of an image goes, measured in one thread: reading, decoding the crop,
augmenting (resize, flip, policy) and batching. The remainder is the cost of prefetching.
"""

import argparse
import collections
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import matplotlib.figure
import numpy as np
import psutil
import rich.table

from effnet_jax import config as config_lib
from effnet_jax import csv_rows, flags, models
from effnet_jax.data import pipeline, sources
from effnet_jax.data.decode import decode_box
from effnet_jax.report import drawing
from effnet_jax.run import writers
from effnet_jax.training import progressive

T = TypeVar("T")
PARTS = ("read", "decode", "augment", "batch")
WARM_UP = 4096  # Images.
SAMPLE = 256  # Images for which each part is timed.
PARSER = flags.Parser(__doc__, config="imagenet:b0")
add = PARSER.group("measurement")
add("--num_images", type=flags.count, default=4096, help=" in a repeat, rounded to whole batches")
add("--repeats", type=flags.count, default=3)
picture = "picture of the categories of time"
add("--picture", type=pathlib.Path, default="runs/benchmark_data.png", metavar="FILE", help=picture)


def cpu_seconds() -> float:
    """User and system time of this process and of its current workers."""
    workers = [worker.cpu_times() for worker in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(used.user + used.system for used in workers)


def resident_mib() -> float:
    """The resident memory of this process and its workers."""
    process = psutil.Process()
    both = (process, *process.children(recursive=True))
    return sum(each.memory_info().rss for each in both) / 2**20


def time_parts(
    source: sources.Source, load: pipeline.TrainImages, resolution: int
) -> dict[str, float]:
    """The microseconds per image that each of PARTS takes in this thread."""
    spent = collections.Counter()

    def timed(part: str, function: Callable[..., T], *args) -> T:
        start = time.perf_counter()
        result = function(*args)
        spent[part] += time.perf_counter() - start
        return result

    images = np.empty((SAMPLE, resolution, resolution, 3), np.uint8)
    for _ in range(2):  # In the first pass, files are not in memory and caches are cold.
        spent.clear()
        for position, out in enumerate(images):
            index, rng = load.index(position), load.random(position)
            record = timed("read", pipeline.read, source, index)
            box = functools.partial(load.box, resolution, rng)
            pixels = timed("decode", decode_box, record["image"], box)
            timed("augment", load.distort, pixels, rng, out)
        chunks = [{"image": part} for part in np.split(images, SAMPLE // pipeline.CHUNK)]
        timed("batch", pipeline.concatenate, chunks)
    return {part: seconds / SAMPLE * 1e6 for part, seconds in spent.items()}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make one row, and draw the picture."""
    config_lib.validate(args.config)
    config = progressive.largest(args.config)
    source = sources.open_source(config.data, config.data.train_split)
    resolution = models.coefficients(config.model).resolution
    batches = pipeline.train_batches(source, config, resolution)
    parts = time_parts(source, pipeline.TrainImages(source, config), resolution)

    steps = max(1, round(args.num_images / config.batch_size))
    counted = steps * config.batch_size
    writers.say(f"{args.repeats} times {counted:,} images of {len(source):,}, {resolution} px")
    started = time.perf_counter()
    ahead = batches.read_ahead(config.data, workers=config.data.processes)
    next(ahead)
    first = time.perf_counter() - started
    # Batches made ahead are consumed before the clocks start, and memory reaches its full size.
    for _ in range(max(config.data.prefetch_batches, WARM_UP // config.batch_size)):
        next(ahead)
    rates, cpu_rates, resident = [], [], [resident_mib()]
    for number in range(args.repeats):
        started, used = time.perf_counter(), cpu_seconds()
        for _ in range(steps):
            next(ahead)
        rates.append(counted / (time.perf_counter() - started))
        cpu_rates.append(counted / (cpu_seconds() - used))
        resident.append(resident_mib())
        writers.say(
            f"{number + 1}/{args.repeats}: {rates[-1]:.0f} images/s, "
            f"{cpu_rates[-1]:.0f} images per CPU-second, {resident[-1]:.0f} MiB"
        )
    ahead.close()
    row = {
        "data": f"{config.data.name}/{config.data.train_split}",
        "policy": config.augment.policy,
        "resolution": resolution,
        "batch": config.batch_size,
        "threads": config.data.threads,
        "processes": config.data.processes,
        "images_per_second": round(statistics.median(rates), 1),
        "images_per_cpu_second": round(statistics.median(cpu_rates), 1),
        "images_per_cpu_second_min": round(min(cpu_rates), 1),
        "images_per_cpu_second_max": round(max(cpu_rates), 1),
        "first_batch_seconds": round(first, 3),
        **{f"{part}_us": round(microseconds, 1) for part, microseconds in parts.items()},
        "resident_mib_first": round(resident[0]),
        "resident_mib_last": round(resident[-1]),
        "images": counted,
        "repeats": args.repeats,
        **csv_rows.describe_machine(),
    }
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(row).savefig(args.picture, dpi=drawing.DPI)
    writers.say(f"picture: {args.picture}")
    return [row]


def draw(row: dict[str, Any]) -> matplotlib.figure.Figure:
    """A figure with one bar: the microseconds per image, divided into PARTS."""
    figure, axes = drawing.new_figure(1.9)
    left = 0.0
    for number, part in enumerate(PARTS):
        width, colour = row[f"{part}_us"], drawing.style("", number)[0]
        axes.barh(0, width, left=left, color=colour, label=f"{part} {width:.0f}")
        left += width
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("microseconds per image, one thread", fontsize=drawing.TEXT)
    axes.set_title(
        f"{row['policy']}, {row['resolution']} px: {row['images_per_cpu_second']:.0f} images per "
        "CPU-second",
        fontsize=drawing.TEXT,
    )
    axes.legend(ncols=len(PARTS), fontsize=drawing.SMALL, loc="upper center", frameon=False)
    axes.set_ylim(-0.5, 1.1)
    return figure


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the row."""
    (row,) = rows
    title = f"{row['data']}, {row['policy']}, {row['resolution']} px, batch {row['batch']}"
    table = rich.table.Table("", "", title=title)
    spread = [f"{row[f'images_per_cpu_second_{end}']:.0f}" for end in ("min", "max")]
    table.add_row("images/s", f"{row['images_per_second']:.0f}")
    rate = f"{row['images_per_cpu_second']:.0f}"
    table.add_row("images per CPU-second (min to max)", f"{rate} ({' to '.join(spread)})")
    table.add_row("first batch after", f"{row['first_batch_seconds']:.2f} s")
    memory = f"{row['resident_mib_first']} to {row['resident_mib_last']} MiB"
    table.add_row("resident memory, first to last", memory)
    for part in PARTS:
        table.add_row(f"{part}, microseconds per image", f"{row[f'{part}_us']:.0f}")
    return table
