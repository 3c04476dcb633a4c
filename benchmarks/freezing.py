"""Measures what freezing saves: training with a frozen network, next to training everything.

Examples:
  python -m benchmarks freezing --csv=results/freezing.csv
  python -m benchmarks freezing --model=b0 --batch=16

Times the training step with all parameters, and with everything but the classifier frozen,
including BatchNorm. The two take turns in blocks of batches.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np
import rich.table

from effnet_jax import config as config_lib
from effnet_jax import csv_rows, flags, parallel
from effnet_jax.run import writers
from effnet_jax.training.state import abstract_state
from effnet_jax.training.step import lower_train_step

EXAMPLES, BLOCK, DROPPED = 10_000, 5, 2  # Batches in a block; the first DROPPED don't count.
PARSER = flags.Parser(__doc__)
add = PARSER.group("measurement")
add("--model", default="lite0")
add("--batch", type=flags.count, default=32)
add("--turns", type=flags.count, default=5)


def _settings(args: argparse.Namespace, freeze: str) -> Any:
    config = config_lib.get_config(args.model)
    config.batch_size, config.optimizer.name = args.batch, "sgd"
    config.model.num_classes = 10
    config.fine_tune.freeze = freeze
    config.fine_tune.batch_norm = "frozen" if freeze else "train"
    return config


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for training all parameters and one for the classifier; the ratio is of medians."""
    mesh, steps, memory = parallel.data_mesh(), {}, {}
    rng = np.random.default_rng(0)
    for name, freeze in (("all", ""), ("classifier", "(?!classifier).*")):
        config = _settings(args, freeze)
        model, _, shapes = abstract_state(config, EXAMPLES)
        compiled = lower_train_step(model, shapes, config, EXAMPLES, mesh).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes
        size = model.architecture.resolution
        writers.say(f"{name}: compiled, {memory[name] / 2**20:,.0f} MiB of temporary memory")
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        steps[name] = [compiled, jax.device_put(zeros, parallel.replicated(mesh))]
    batch = {
        "image": rng.integers(0, 255, (args.batch, size, size, 3), np.uint8),
        "label": np.zeros(args.batch, np.int32),
        "mask": np.ones(args.batch, np.float32),
    }
    batch, seconds = parallel.put_batch(batch, mesh), {name: [] for name in steps}
    for _ in range(args.turns):
        for name, (compiled, state) in steps.items():
            for number in range(BLOCK):
                start = time.perf_counter()
                state, metrics = compiled(state, batch, np.uint32(0))
                jax.block_until_ready(metrics)
                if number >= DROPPED:
                    seconds[name].append(time.perf_counter() - start)
            steps[name][1] = state
    rows, medians = [], {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        row = {"model": args.model, "resolution": size, "batch": args.batch, "trained": name}
        row |= {"images_per_second": round(args.batch / median, 2)}
        row |= {"speed_over_all": round(medians["all"] / median, 2)}
        row |= {"temporary_mib": round(memory[name] / 2**20, 1)}
        rows.append(row | {"turns": args.turns} | csv_rows.describe_machine())
    return rows


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    table = rich.table.Table("trained", "images/s", "speed", "temporary memory")
    for row in rows:
        cells = (f"{row['images_per_second']:g}", f"{row['speed_over_all']:g}x")
        table.add_row(row["trained"], *cells, f"{row['temporary_mib']:,.0f} MiB")
    return table
