"""Measures the time of one image on one core, as in the paper's Table 4.

Examples:
  python -m benchmarks latency --csv=results/benchmark_latency.csv
  python -m benchmarks latency --models b0 lite0 --repeats=50

Each model runs alone at batch 1 in float32. After a few runs to warm up, the mean is measured.
"""

import argparse
import os
import statistics
import time
from typing import Any

import jax
import numpy as np
import rich.table

from effnet_jax import config as config_lib
from effnet_jax import csv_rows, flags, models
from effnet_jax.run import writers
from effnet_jax.run.workers import available_cores

# The models of Table 4 except GPipe's AmoebaNet, which is not implemented.
MODELS = "b1,resnet152,b7"
WARM_UP = 3
PARSER = flags.Parser(__doc__)
add = PARSER.group("measurement")
add("--models", nargs="+", default=[MODELS], help=", or several with commas")
add("--repeats", type=flags.count, default=20)


def pin() -> None:
    """Restrict this process to one core. Call this before JAX starts, which then counts cores."""
    if not hasattr(os, "sched_setaffinity"):
        writers.say("this system can't restrict a process to one core; JAX uses all cores")
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def milliseconds(name: str, repeats: int) -> tuple[int, list[float]]:
    """The resolution of a model and the milliseconds of each timed run."""
    config = config_lib.get_config(name).model
    config.num_classes = 1000
    model = models.build(config)
    size = model.architecture.resolution

    def initial(key):
        return models.init_variables(model, size, key)

    def logits(variables, image):
        return model.apply(variables, image, train=False)[0]

    quick = {"xla_backend_optimization_level": 0}  # The program runs only once.
    variables = jax.jit(initial, compiler_options=quick)(jax.random.key(0))
    pixels = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    image = jax.device_put(pixels)
    run = jax.jit(logits).lower(variables, image).compile()
    times = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(variables, image))
        times.append(1000 * (time.perf_counter() - start))
    return size, times[WARM_UP:]


def names_of(words: list[str]) -> list[str]:
    """The model names in words such as "b1,resnet152"; a word with "=" is a single name."""
    names = [name for text in words for name in ([text] if "=" in text else text.split(","))]
    for name in names:
        models.parse_variant(name)  # Check all of them before the first long run.
    return names


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each model."""
    names = names_of(args.models)
    pin()
    rows = []
    for name in names:
        size, times = milliseconds(name, args.repeats)
        writers.say(f"{name}, {size} px: {statistics.fmean(times):.1f} ms")
        rows.append(
            {
                "model": name,
                "resolution": size,
                "batch": 1,
                "dtype": "float32",
                "latency_ms": round(statistics.fmean(times), 3),
                "latency_ms_min": round(min(times), 3),
                "latency_ms_max": round(max(times), 3),
                "repeats": args.repeats,
                "threads": len(available_cores()),
                **csv_rows.describe_machine(),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    threads = rows[0]["threads"]
    columns = ("model", "resolution", "ms (min to max)")
    table = rich.table.Table(*columns, title=f"batch 1, float32, threads: {threads}")
    for row in rows:
        low, mean, high = (row[f"latency_ms{key}"] for key in ("_min", "", "_max"))
        table.add_row(row["model"], str(row["resolution"]), f"{mean:.1f} ({low:.1f} to {high:.1f})")
    return table
