"""Measures the time of activation maps, next to that of predicting the same images.

Examples:
  python -m benchmarks maps --csv=results/benchmark_maps.csv
  python -m benchmarks maps --model=b0 --batch=8

Rows have the CPU seconds of a call. Predictions and maps of the same images take turns.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import rich.table

from effnet_jax import config as config_lib
from effnet_jax import csv_rows, explain, flags, models
from effnet_jax.run import writers

CASES = (("cam", None), ("gradcam", None), ("gradcam", "stage2"), ("layercam", "stage3"))
PARSER = flags.Parser(__doc__)
add = PARSER.group("measurement")
add("--model", default="lite0")
add("--batch", type=flags.count, default=32)
add("--repeats", type=flags.count, default=5)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for predictions and one for each of `CASES`; the ratio is of the fastest calls."""
    config = config_lib.get_config(args.model).model
    config.num_classes = 1000
    model = models.build(config)
    size = model.architecture.resolution
    variables = jax.jit(lambda key: models.init_variables(model, size, key))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (args.batch, size, size, 3))
    classes = jnp.arange(args.batch)
    predict = jax.jit(lambda images: model.apply(variables, images, train=False)[0])
    calls = {("predict", None): lambda: predict(images)}
    for case in CASES:
        calls[case] = lambda case=case: explain.maps(model, variables, images, classes, *case)
    seconds = {case: [] for case in calls}
    for repeat in range(args.repeats + 1):
        for case, call in calls.items():
            start = time.process_time()
            jax.block_until_ready(call())
            if repeat:  # The first call compiles.
                seconds[case].append(time.process_time() - start)
    base, rows = min(seconds["predict", None]), []
    for (method, layer), each in seconds.items():
        row = {"model": args.model, "resolution": size, "batch": args.batch, "method": method}
        row |= {"layer": layer or "", "cpu_seconds": round(min(each), 4)}
        row |= {"cpu_seconds_median": round(statistics.median(each), 4)}
        row |= {"ratio": round(min(each) / base, 3), "repeats": args.repeats}
        rows.append(row | csv_rows.describe_machine())
        writers.say(f"{method} {layer or ''}: {min(each):.3f} s")
    return rows


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    table = rich.table.Table("method", "layer", "CPU seconds", "relative to predicting")
    for row in rows:
        ratio = f"{row['ratio']:.2f}"
        table.add_row(row["method"], row["layer"], f"{row['cpu_seconds']:.3f}", ratio)
    return table
