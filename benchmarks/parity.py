"""Compare our networks with timm's in PyTorch, from the same weights and images.

A difference is the largest absolute difference of two arrays over the largest absolute value of
timm's. A row has the largest difference over all arrays of a kind. There are two exceptions. In
training, the bias of a BatchNorm before a 1x1 convolution and another BatchNorm has no effect, so
its gradient is 0 except for rounding; such gradients are relative to that of the norm's scale. The
gradient of ReLU is discontinuous at 0, where rounding decides; timm's ReLU takes the side of each
number from ours, and the column `flips` counts the numbers that were on the other side. The outputs
of norms are compared as features in training, which shows that such numbers are close to 0.

The weights and BatchNorm's statistics are random. `weights.save` writes them to a .safetensors file
with timm's names, and timm loads this file with strict=True. Gradients and statistics are compared
by the same names in PyTorch's layout. Dropout and stochastic depth are off. PyTorch updates running
variances with the unbiased variance of a batch, but we use the biased one, as TensorFlow does, so
timm's are converted after each batch.
"""

import argparse
import pathlib
import sys
import tempfile
from importlib import metadata
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch
from ml_collections import ConfigDict

from benchmarks import bars, peer_timm
from benchmarks.peer_timm import Arrays, Outcome
from effnet_jax import config as default
from effnet_jax import csv_rows, models, parallel, weights
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.metrics import cross_entropy, smooth_targets
from effnet_jax.models.layers import BatchNorm
from effnet_jax.models.network import Network
from effnet_jax.run import writers
from effnet_jax.training.state import TrainState, abstract_state
from effnet_jax.training.step import lower_train_step
from effnet_jax.weights.names import list_arrays
from effnet_jax.weights.origins import NAMES, ORIGINS

PyTree = Any


class Case(NamedTuple):
    """A network with our name and timm's.

    Attributes:
      origin: the origin of timm's weights, which determines padding and epsilon.
      steps: the number of training steps to compare; 0 for none.
    """

    model: str
    peer: str
    origin: str = "timm_tf"
    steps: int = 0


CASES = (
    Case("b0", "tf_efficientnet_b0", steps=10),
    *(Case(f"b{number}", f"tf_efficientnet_b{number}") for number in range(1, 5)),
    Case("b0", "efficientnet_b0", "timm"),
    *(Case(f"lite{number}", f"tf_efficientnet_lite{number}") for number in range(3)),
    Case("edgetpu-s", "tf_efficientnet_es"),
    Case("v2-b0", "tf_efficientnetv2_b0", steps=10),
    Case("v2-s", "tf_efficientnetv2_s"),
)
# The largest differences allowed. Losses: at each of ten steps; weights and averages: after them.
BARS = {
    "eval_logits": 1e-4,
    "eval_features": 1e-4,
    "train_logits": 1e-4,
    "train_features": 1e-4,
    "statistics": 1e-4,
    "gradients": 1e-3,
    "losses": 1e-3,
    "weights": 1e-3,
    "averages": 1e-3,
}
# Before each strided layer, one side is even and the other odd, which TensorFlow pads differently.
BATCH, HEIGHT, WIDTH, CLASSES = 8, 96, 97, 1000
# Few images and classes, so that ten steps reduce the loss.
STEP_BATCH, STEP_RESOLUTION, STEP_CLASSES, STEP_BATCHES = 16, 64, 10, 5
ROUNDING = 1e-4  # A bias's gradient below this share of that of the norm's scale counts as 0.


def make_config(case: Case, classes: int) -> ConfigDict:
    """The default config without randomness in training."""
    config = default.get_config(case.model)
    config.model.num_classes = classes
    config.model.padding = ORIGINS[case.origin].padding
    config.model.batch_norm_epsilon = ORIGINS[case.origin].epsilon(case.model)
    config.model.dropout, config.model.survival_probability = 0.0, 1.0
    return config


def random_variables(shapes: PyTree, seed: int) -> PyTree:
    """Random weights and statistics, none exactly 0 or 1, with which features stay of order 1."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        kind, shape = path[-1].key, leaf.shape
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        spread = np.prod(shape[:-1]) ** -0.5 if kind == "kernel" else 0.2
        return rng.normal(0, spread, shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def build_peer(case: Case, config: ConfigDict, variables: PyTree) -> torch.nn.Module:
    """timm's network with our variables, loaded from a file that `weights.save` writes."""
    preprocess = Preprocess.from_config(config.preprocess, config.model.resolution).to_dict()
    classes = tuple(f"class {number}" for number in range(config.model.num_classes))
    written = weights.Weights(config.model, variables, preprocess, classes, case.origin)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.safetensors"
        weights.save(path, written, names="timm")
        return peer_timm.build(case.peer, path, config.model)


def in_timm_form(variables: PyTree, model: Network) -> Arrays:
    """Variables, or gradients and statistics, with timm's names and in PyTorch's layout."""
    names, flat = NAMES["timm"], flax.traverse_util.flatten_dict(variables, sep="/")
    return {
        names.of(array): names.theirs(array, flat[array.name])
        for array in list_arrays(model.architecture)
    }


# ---- One batch


def evaluate(config: ConfigDict, variables: PyTree, images: np.ndarray) -> Outcome:
    """As `peer_timm.evaluate`."""
    model = models.build(config.model)
    run = jax.jit(lambda variables: model.apply(variables, images, train=False))
    return Outcome(*jax.device_get(run(variables)), {}, {}, {}, 0)


def train_batch(
    config: ConfigDict, variables: PyTree, images: np.ndarray, labels: np.ndarray
) -> Outcome:
    """As `peer_timm.train_batch`."""
    model, key = models.build(config.model), jax.random.key(0)
    targets = smooth_targets(labels, config.model.num_classes, config.loss.label_smoothing)

    def is_norm(module, method):
        return isinstance(module, BatchNorm) and method == "__call__"

    @jax.jit
    def run(variables):
        def loss(params):
            (logits, features), updated = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs={"dropout": key, "stochastic_depth": key},  # Required, although unused.
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=is_norm,
            )
            return cross_entropy(logits, targets).mean(), (logits, features, updated)

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradients, (logits, features, updated) = jax.device_get(run(variables))
    outputs = flax.traverse_util.flatten_dict(updated["intermediates"], sep="/")
    norms = {
        NAMES["timm"].of(array): outputs[array.name[len("params/") : -len("scale")] + "__call__"][0]
        for array in list_arrays(model.architecture)
        if array.leaf == "scale"
    }
    found = in_timm_form({"params": gradients, "batch_stats": updated["batch_stats"]}, model)
    statistics = {name: found.pop(name) for name in list(found) if "running_" in name}
    return Outcome(logits, features, norms, statistics, found, 0)


def sizes(named: Arrays) -> dict[str, float]:
    """The largest absolute value of each array."""
    return {name: float(np.abs(x).max()) for name, x in named.items()}


def gradient_sizes(gradients: Arrays) -> tuple[dict[str, float], int]:
    """`sizes`, with the scale's for biases of norms that have only rounding, and their number."""
    found = sizes(gradients)
    scales = {
        name: found[name.removesuffix("bias") + "weight"]
        for name in gradients
        if name.endswith(".bias") and gradients[name.removesuffix("bias") + "weight"].ndim == 1
    }
    zeros = {name: size for name, size in scales.items() if found[name] < ROUNDING * size}
    return found | zeros, len(zeros)


def largest(
    ours: Arrays, peer: Arrays, relative_to: dict[str, float] | None = None
) -> tuple[float, str]:
    """The largest difference and its array; infinite if arrays are missing or differ in shape."""
    if odd := {n for n in ours | peer if np.shape(ours.get(n)) != np.shape(peer.get(n))}:
        return float("inf"), min(odd)
    relative_to = relative_to or sizes(peer)
    found = {
        name: float(np.abs(x - peer[name].astype(np.float64)).max()) / relative_to[name]
        for name, x in ours.items()
    }
    worst = max(found, key=lambda name: np.nan_to_num(found[name], nan=np.inf))
    return found[worst], worst


def compare_batch(case: Case, seed: int) -> dict[str, Any]:
    """Compare both networks on one batch in evaluation and training; return columns of a row."""
    config = make_config(case, CLASSES)
    model = models.build(config.model)
    shapes = jax.eval_shape(lambda: models.init_variables(model, 64, jax.random.key(0)))
    variables = random_variables(shapes, seed)
    peer = build_peer(case, config, variables)
    rng = np.random.default_rng(seed + 1)
    images = rng.normal(size=(BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
    labels = rng.integers(CLASSES, size=BATCH, dtype=np.int32)
    row = {}
    ours, theirs = evaluate(config, variables, images), peer_timm.evaluate(peer, images)
    row["eval_logits"], _ = largest({"": ours.logits}, {"": theirs.logits})
    row["eval_features"], _ = largest(ours.features, theirs.features)
    ours = train_batch(config, variables, images, labels)
    smoothing = config.loss.label_smoothing
    theirs = peer_timm.train_batch(peer, images, labels, smoothing, ours.norms)
    row["train_logits"], _ = largest({"": ours.logits}, {"": theirs.logits})
    row["train_features"], _ = largest(ours.features | ours.norms, theirs.features | theirs.norms)
    row["statistics"], _ = largest(ours.statistics, theirs.statistics)
    relative_to, zeros = gradient_sizes(theirs.gradients)
    row["gradients"], worst = largest(ours.gradients, theirs.gradients, relative_to)
    return {**row, "worst_gradient": worst, "zero_gradients": zeros, "flips": theirs.flips}


# ---- Steps of training


def compare_training(case: Case, seed: int) -> dict[str, Any]:
    """Compare our training with PyTorch's from the same start; return columns of a row."""
    columns = ("losses", "weights", "averages", "first_loss", "last_loss")
    if not case.steps:
        return dict.fromkeys(columns)
    config = make_config(case, STEP_CLASSES)
    config.batch_size, config.model.resolution = STEP_BATCH, STEP_RESOLUTION
    examples = 2 * STEP_BATCH
    # Ten steps cover the warm-up and the decay of the learning rate, and L2 has an effect.
    config.schedule.warmup_epochs, config.schedule.decay_epochs = 1.0, 1.2
    config.optimizer.rmsprop.learning_rate = 0.016 * 256 / STEP_BATCH
    config.optimizer.rmsprop.weight_decay = 1e-2
    model, optimizer, shapes = abstract_state(config, examples)
    variables = random_variables({"params": shapes.params, "batch_stats": shapes.batch_stats}, seed)
    rng = np.random.default_rng(seed + 1)
    side = STEP_RESOLUTION
    few = [
        {
            "image": rng.integers(256, size=(STEP_BATCH, side, side, 3), dtype=np.uint8),
            "label": rng.integers(STEP_CLASSES, size=STEP_BATCH, dtype=np.int32),
            "mask": np.ones(STEP_BATCH, np.float32),
        }
        for _ in range(STEP_BATCHES)
    ]
    batches = [few[step % STEP_BATCHES] for step in range(case.steps)]

    mesh = parallel.data_mesh()
    zero = np.zeros((), np.int32)
    state = TrainState(
        step=zero,
        **variables,
        opt_state=optimizer.init(jax.tree.map(jnp.asarray, variables["params"])),
        ema=variables,
        skipped=zero,
        rollbacks=zero,
    )
    state = jax.device_put(jax.tree.map(jnp.array, state), parallel.replicated(mesh))
    step = lower_train_step(model, shapes, config, examples, mesh).compile()
    losses = []
    for batch in batches:
        state, metrics = step(state, parallel.put_batch(batch, mesh), np.uint32(config.seed))
        losses.append(float(metrics["loss"] / metrics["count"]))
    raw, ema = jax.device_get(
        ({"params": state.params, "batch_stats": state.batch_stats}, state.ema)
    )

    peer = build_peer(case, config, variables)
    peer_losses, ends, averages = peer_timm.train(peer, batches, config, examples)
    apart = np.abs(np.subtract(losses, peer_losses)) / peer_losses
    values = (
        float(apart.max()),
        largest(in_timm_form(raw, model), ends)[0],
        largest(in_timm_form(ema, model), averages)[0],
        round(peer_losses[0], 4),
        round(peer_losses[-1], 4),
    )
    return dict(zip(columns, values, strict=True))


# ---- The table


def describe(row: dict[str, Any]) -> str:
    """The differences of a row as a line of text."""
    return ", ".join(f"{key} {row[key]:.1e}" for key in BARS if row[key] is not None)


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """The bars that were missed; NaN misses its bar."""
    return [
        f"{row['model']} and {row['peer']}: {key} {row[key]:.1e} > {bar:.0e}"
        for row in rows
        for key, bar in BARS.items()
        if row[key] is not None and not row[key] <= bar
    ]


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    heads = [f"{key}\n< {bar:.0e}".replace("_", "\n") for key, bar in BARS.items()]
    table = rich.table.Table("", "timm's", *heads, title="Largest relative differences")
    table.columns[1].no_wrap = True
    for row in rows:
        values = ("" if row[key] is None else f"{row[key]:.0e}" for key in BARS)
        table.add_row(row["model"], row["peer"], *values)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [case.peer for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=pathlib.Path, help="append the rows")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # Other platforms compute float32 less precisely.
    cases = [case for case in CASES if case.peer in args.only]
    versions = {f"{name}_version": metadata.version(name) for name in ("timm", "torch")}
    settings = {"seed": args.seed, "batch": BATCH, "height": HEIGHT, "width": WIDTH}
    rows = []
    for number, case in enumerate(cases, 1):
        row = case._asdict()
        row |= compare_batch(case, args.seed)
        row |= compare_training(case, args.seed)
        row |= {key: float(f"{row[key]:.3g}") for key in BARS if row[key] is not None}
        rows.append({**row, **settings, **versions, **csv_rows.describe_machine()})
        writers.say(f"{number}/{len(cases)} {case.peer}: {describe(row)}")
    rich.console.Console(width=150).print(show(rows))
    if args.csv:
        csv_rows.append_csv(args.csv, rows)
    return bars.report(failures(rows))


if __name__ == "__main__":
    sys.exit(main())
