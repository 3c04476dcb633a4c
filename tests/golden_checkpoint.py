"""The checkpoint under tests/golden/checkpoint_v1, which later code has to load.

It is the workdir of a tiny network after five steps on digits, saved from one device. expected.json
has sums over its arrays, and the logits of `images`. It was written by

    JAX_PLATFORMS=cpu PYTHONPATH=. python tests/golden_checkpoint.py

A release that changes the format keeps this one, and adds another.
"""

import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np

from configs import digits
from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.training import supervisor

WORKDIR = pathlib.Path(__file__).parent / "golden" / "checkpoint_v1"
KEPT = ("config.json", "classes.json", "checkpoints")


def images() -> np.ndarray:
    """Four images [4, 16, 16, 3] in -1..1, from no random generator that may change."""
    return np.sin(np.arange(4 * 16 * 16 * 3, dtype=np.float32)).reshape(4, 16, 16, 3)


def classify(config):
    """A function of parameters and statistics: the logits of `images`."""
    model = models.build(config.model)

    @jax.jit
    def logits(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, images(), train=False)[0]

    return logits


def describe(config, state) -> dict:
    """What expected.json holds of a state."""
    sums = {
        name: sum(float(np.asarray(leaf, np.float64).sum()) for leaf in jax.tree.leaves(part))
        for name, part in {
            "params": state.params,
            "batch_stats": state.batch_stats,
            "opt_state": state.opt_state,
            "ema": state.ema,
        }.items()
    }
    logits = classify(config)
    found = {which: logits(*state.weights(which)) for which in ("raw", "ema")}
    return {
        "step": int(state.step),
        "sums": sums,
        "logits": {which: np.asarray(value).tolist() for which, value in found.items()},
    }


def main() -> None:
    config = digits.get_config("efficientnet_v2,w=0.1,d=0.1,r=16")
    config.batch_size, config.epochs = 256, 1.0
    with tempfile.TemporaryDirectory() as workdir:
        state, _ = supervisor.train_and_evaluate(config, workdir)
        shutil.rmtree(WORKDIR, ignore_errors=True)
        WORKDIR.mkdir()
        for name in KEPT:
            source = pathlib.Path(workdir) / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, WORKDIR / name)
    expected = describe(config_lib.load(WORKDIR), state)
    (WORKDIR / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
