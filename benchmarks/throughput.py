"""Images per second of training and of evaluation steps: `python -m benchmarks model`.

The same model with `lax`'s grouped convolution as its depthwise layers is measured next to it. The
two take turns in one process, so that the ratio holds on a noisy machine.
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
from effnet_jax.evaluation import make_eval_step
from effnet_jax.models import operations
from effnet_jax.run import writers
from effnet_jax.training.state import abstract_state, fresh_state
from effnet_jax.training.step import lower_train_step, random_key

# Batches of each form that are not counted: until then, on CPU, memory is still being faulted in.
WARM_UP = 2
SEED = np.uint32(0)
IMAGES = 1_281_167  # ImageNet's, in an epoch.
FORMS = {"ours": operations.depthwise_conv, "lax": operations.lax_depthwise_conv}


PARSER = flags.Parser(__doc__)
PARSER.add_argument("--model", default="b0", help="as for the summary")
PARSER.add_argument("--batch", type=flags.count, default=16)
PARSER.add_argument("--resolution", type=flags.count, help="by default the model's own")
PARSER.add_argument("--dtype", default="float32")
PARSER.add_argument("--repeats", type=flags.count, default=5, help="pairs of timed batches")


class Timed:
    """A compiled program of one form: `run(mode)` gives the seconds of one batch."""

    def __init__(self, form: str, args: argparse.Namespace):
        config = config_lib.get_config(args.model)
        config.batch_size = args.batch
        config.model.num_classes = 1000
        config.model.dtype = args.dtype
        if args.resolution:
            config.model.resolution = args.resolution
        mesh = parallel.data_mesh()
        parallel.check_batch("batch_size", args.batch, parallel.data_shards(mesh))
        replicated = parallel.replicated(mesh)
        model, optimizer, shapes = abstract_state(config, IMAGES)
        self.resolution = model.architecture.resolution
        model = model.clone(depthwise_conv=FORMS[form])
        rng, size = np.random.default_rng(0), self.resolution
        images = rng.integers(0, 256, (args.batch, size, size, 3), np.uint8)
        labels = rng.integers(0, 1000, args.batch, np.int32)
        batch = {"image": images, "label": labels, "mask": np.ones(args.batch, np.float32)}
        self._batch = parallel.put_batch(batch, mesh)
        key = random_key(0, "init", 0)
        self._state = fresh_state(model, optimizer, size, key, replicated)
        evaluate = jax.jit(make_eval_step(model, config.preprocess), out_shardings=replicated)
        self._train = lower_train_step(model, shapes, config, IMAGES, mesh).compile()
        self._evaluate = evaluate.lower(*self._state.weights("raw"), self._batch).compile()

    def run(self, mode: str) -> float:
        start = time.perf_counter()
        if mode == "train":
            self._state, metrics = self._train(self._state, self._batch, SEED)
        else:
            metrics = self._evaluate(*self._state.weights("raw"), self._batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each mode: images/s of both forms (median), and their ratio (median of pairs)."""
    forms = {}
    for form in FORMS:
        start = time.perf_counter()
        forms[form] = Timed(form, args)
        writers.say(f"{form}: compiled after {time.perf_counter() - start:.0f} s")
    machine = csv_rows.describe_machine()
    rows = []
    for mode in ("train", "infer"):
        for _ in range(WARM_UP):
            for timed in forms.values():
                timed.run(mode)
        pairs = []
        for number in range(args.repeats):
            pairs.append({form: timed.run(mode) for form, timed in forms.items()})
            shown = ", ".join(f"{form} {args.batch / s:.2f}" for form, s in pairs[-1].items())
            writers.say(f"{mode} {number + 1}/{args.repeats}: {shown} images/s")
        ratios = [pair["lax"] / pair["ours"] for pair in pairs]
        rate = {form: args.batch / statistics.median(p[form] for p in pairs) for form in FORMS}
        rows.append(
            {
                "model": args.model,
                "mode": mode,
                "resolution": forms["ours"].resolution,
                "batch": args.batch,
                "dtype": args.dtype,
                "images_per_second": round(rate["ours"], 3),
                "lax_images_per_second": round(rate["lax"], 3),
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "repeats": args.repeats,
                **machine,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The rows for a person."""
    first = rows[0]
    title = f"{first['model']}, {first['resolution']} px, batch {first['batch']}, {first['dtype']}"
    columns = ("", "ours", "lax depthwise", "ratio (min to max)")
    table = rich.table.Table(*columns, title=f"{title}, images/s")
    for row in rows:
        spread = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        rates = [f"{row[key]:.2f}" for key in ("images_per_second", "lax_images_per_second")]
        table.add_row(row["mode"], *rates, spread)
    return table
