"""Evaluates a run, or a file of weights, as eval.py does and in this process."""

import pathlib

import numpy as np

from effnet_jax import config as config_lib
from effnet_jax import weights
from effnet_jax.robustness_sets import choose_data
from effnet_jax.robustness_sets import evaluate_set as evaluate


def evaluate_run(workdir, step=None, which="ema", data=None, **others):
    workdir = pathlib.Path(workdir)
    found = weights.load(workdir / "checkpoints" / str(step) if step else workdir, weights=which)
    config = choose_data(found, config_lib.load(workdir), data, others.pop("data_dir", None))
    return evaluate(found, config, which, **others)


def evaluate_file(path, data=None, data_dir=None, csv=None):
    found = weights.load(path)
    return evaluate(found, choose_data(found, None, data, data_dir), path, csv)


def random_values(rng, like):
    """Values that keep activations in range; drawn by NumPy, since compiling a draw costs more."""
    if len(like.shape) < 2:
        return rng.uniform(0.5, 1.5, like.shape).astype(like.dtype)
    return (rng.normal(size=like.shape) / np.prod(like.shape[:-1]) ** 0.5).astype(like.dtype)
