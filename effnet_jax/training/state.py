"""`TrainState`: everything that a run is, in one frozen struct."""

import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from ml_collections import ConfigDict

from effnet_jax import models
from effnet_jax.run.workers import abandonable
from effnet_jax.training.optimizer import build_optimizer, learning_rate

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """All that is needed to resume: random numbers follow from the step, and step t trains on
    batch t + skipped.
    """

    step: jax.Array  # Updates done.
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: dict[str, PyTree]  # Running averages of params and batch_stats, under these names.
    skipped: jax.Array  # Batches that roll-backs have passed over.
    rollbacks: jax.Array

    def weights(self, which: str) -> tuple[PyTree, PyTree]:
        """Parameters and BatchNorm statistics, "raw" or "ema"."""
        if which == "ema":
            return self.ema["params"], self.ema["batch_stats"]
        return self.params, self.batch_stats


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, resolution: int, key: jax.Array
) -> TrainState:
    """A fresh state; the averages start at the initial weights, as in TensorFlow."""
    variables = models.init_variables(model, resolution, key)
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    counters = dict.fromkeys(("step", "skipped", "rollbacks"), jnp.zeros((), jnp.int32))
    # Copies: the step donates the state, and a buffer can be donated only once.
    ema, counters = jax.tree.map(jnp.copy, (weights, counters))
    return TrainState(**weights, opt_state=optimizer.init(weights["params"]), ema=ema, **counters)


def fresh_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    resolution: int,
    key: jax.Array,
    sharding: Sharding | PyTree,
) -> TrainState:
    """`init_state`, compiled, with one sharding for all arrays or a tree of them."""
    # The program runs once: on CPU, optimising it takes ten times longer than all the rest.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    init = functools.partial(init_state, model, optimizer, resolution)
    lowered = jax.jit(init, out_shardings=sharding, compiler_options=options).lower(key)
    return abandonable(lowered.compile)(key)


def abstract_state(config: ConfigDict, examples: int) -> tuple[nn.Module, Any, TrainState]:
    """Model, optimizer and the state's shapes; builds no arrays.

    For the whole config, with the number of classes known, and the training records in an epoch.
    """
    model = models.build(config.model)
    resolution = model.architecture.resolution
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key: models.init_variables(model, resolution, key), key)
    rate, params = learning_rate(config, examples), variables["params"]
    optimizer = build_optimizer(config.optimizer, rate, params, config.fine_tune)
    shapes = jax.eval_shape(lambda key: init_state(model, optimizer, resolution, key), key)
    return model, optimizer, shapes
