"""The training step: pure, `(state, batch, seed) -> (state, metrics)`."""

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import parallel
from effnet_jax.data.preprocess import normalize
from effnet_jax.metrics import cross_entropy, smooth_targets
from effnet_jax.models import operations
from effnet_jax.training import freezing
from effnet_jax.training.accumulation import in_microbatches
from effnet_jax.training.mixing import is_mixing, mix
from effnet_jax.training.optimizer import (
    average_decay,
    build_optimizer,
    ema_decay,
    learning_rate,
)
from effnet_jax.training.state import TrainState

PyTree = Any
Arrays = dict[str, jax.Array]  # A batch, or the metrics of a step.


def random_key(seed: int | jax.Array, purpose: str, step: int | jax.Array) -> jax.Array:
    """The key for one purpose at one step; nothing random is ever stored."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def make_gradients(model: nn.Module, config: ConfigDict, mesh: Mesh) -> Callable[..., PyTree]:
    """The loss and its gradient, in microbatches where `accumulation_steps` asks for them.

    `((params, batch_stats, count, kept), batch, rngs) -> ((loss, (correct, batch_stats)), grads)`,
    for a batch of normalised images and target distributions, of which `count` are not masked.
    `kept` are the parameters that are not trained; there may be none, {}.
    """
    count, shards = config.accumulation_steps, parallel.data_shards(mesh)
    group = parallel.batch_norm_group(config, shards)
    own = config.batch_size // (count * shards)  # A device's examples at a time.
    members = max(1, group // own)  # Devices that share statistics.
    platform = mesh.devices.flat[0].platform  # The planner's devices are not JAX's own.
    chosen = operations.choose(model.operations, platform)
    model = model.clone(operations=chosen, examples=own)
    if count > 1 and members > 1:
        model = model.clone(batch_norm_axis="member")
    else:
        model = model.clone(batch_norm_group=group)

    def gradients(weights: PyTree, batch: Arrays, rngs: Arrays) -> PyTree:
        params, batch_stats, examples, kept = weights
        parts = freezing.frozen_norms(config.fine_tune, freezing.merge(params, kept))
        network = model.clone(frozen_norms=parts)

        @jax.named_scope("forward")
        def loss_fn(params):
            variables = {"params": freezing.merge(params, kept), "batch_stats": batch_stats}
            (logits, _), updated = network.apply(
                variables, batch["image"], train=True, mutable=["batch_stats"], rngs=rngs
            )
            losses = cross_entropy(logits, batch["target"]) * batch["mask"]
            correct = jnp.where(logits.argmax(-1) == batch["label"], batch["mask"], 0)
            return losses.sum() / jnp.maximum(examples, 1), (correct.sum(), updated["batch_stats"])

        # As jax.value_and_grad, which has no place for a name of the backward pass.
        loss, pull_back, aux = jax.vjp(loss_fn, params, has_aux=True)
        with jax.named_scope("backward"):
            (grads,) = pull_back(jnp.ones_like(loss))
        return (loss, aux), grads

    if count == 1:
        return gradients
    summed = in_microbatches(gradients, count, mesh, members)

    def accumulated(weights: PyTree, batch: Arrays, rngs: Arrays) -> PyTree:
        (loss, (correct, batch_stats)), grads = summed(weights, batch, rngs)
        # All else is a sum; these are the running statistics after each microbatch.
        batch_stats = jax.tree.map(lambda x: x / (count * shards), batch_stats)
        return (loss, (correct, batch_stats)), grads

    return accumulated


def make_train_step(
    model: nn.Module, config: ConfigDict, examples: int, mesh: Mesh
) -> Callable[[TrainState, Arrays, jax.Array], tuple[TrainState, Arrays]]:
    """The training step for the whole config, an epoch's examples, and a mesh; not jitted.

    Its batch is image uint8 [N, H, W, 3], label int32 [N] and mask float32 [N]; runs over seeds
    share one compiled program. Metrics are loss and correct, summed over the batch, their count,
    the norm of the gradient without weight decay, and the norm of the new weights and BatchNorm
    statistics, which is finite only if they all are.
    """
    gradients, rate = make_gradients(model, config, mesh), learning_rate(config, examples)
    preprocess, smoothing = config.preprocess, config.loss.label_smoothing
    most = average_decay(config, examples)

    def train_step(state: TrainState, batch: Arrays, seed: jax.Array) -> tuple[TrainState, Arrays]:
        streams = ("dropout", "stochastic_depth")
        rngs = {name: random_key(seed, name, state.step) for name in streams}
        with jax.named_scope("data"):
            images = normalize(batch["image"], preprocess.mean, preprocess.std)
            targets = smooth_targets(batch["label"], config.model.num_classes, smoothing)
            if is_mixing(config.augment):
                key = random_key(seed, "mixing", state.step)
                images, targets = mix(images, targets, batch["mask"], config.augment, key)
        count = batch["mask"].sum()
        names = freezing.frozen_now(config.fine_tune, state.params)
        trained, kept = freezing.split(state.params, names)
        weights = trained, state.batch_stats, count, kept
        batch = {**batch, "image": images, "target": targets}
        (loss, (correct, batch_stats)), grads = gradients(weights, batch, rngs)
        # Each device updates its share, whatever a compiler prefers.
        if config.optimizer.sharded or parallel.splits_state(mesh):
            shares = parallel.shard_largest_axis(grads, mesh)
            grads = jax.lax.with_sharding_constraint(grads, shares)
        with jax.named_scope("update"):
            optimizer = build_optimizer(config.optimizer, rate, state.params, config.fine_tune)
            ever, _ = freezing.split(state.params, freezing.frozen(config.fine_tune, state.params))
            own = freezing.select(state.opt_state, ever, names)
            updates, own = optimizer.update(grads, own, trained)
            opt_state = freezing.put_back(own, state.opt_state, ever, names)
            trained = optax.apply_updates(trained, updates)
            params = freezing.merge(trained, kept)

            step = state.step + 1
            decay = ema_decay(most, step)
            norms = freezing.frozen_norms(config.fine_tune, params)
            still = {
                name for name in freezing.flatten(batch_stats) if name.partition("/")[0] in norms
            }
            ema = {
                "params": freezing.average(state.ema["params"], params, decay, names),
                "batch_stats": freezing.average(
                    state.ema["batch_stats"], batch_stats, decay, still
                ),
            }
            metrics = {
                "loss": loss * count,
                "correct": correct,
                "count": count,
                "grad_norm": optax.tree.norm(grads),
                "weight_norm": optax.tree.norm((params, batch_stats)),
            }
        new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state, "ema": ema}
        return state.replace(step=step, **new), metrics

    return train_step


def lower_train_step(
    model: nn.Module, shapes: TrainState, config: ConfigDict, examples: int, mesh: Mesh
) -> jax.stages.Lowered:
    """The training step as a run executes it, its state donated, lowered for the devices of a mesh.

    The devices need not exist: the planner's are descriptions. `shapes`: see `abstract_state`.
    """
    shardings = parallel.state_sharding(shapes, mesh, config.optimizer.sharded)
    state = parallel.abstract(shapes, shardings)
    batch = parallel.abstract_batch(config.batch_size, model.architecture.resolution, mesh)
    step = make_train_step(model, config, examples, mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, parallel.replicated(mesh)))
    return jitted.lower(state, batch, np.uint32(config.seed))
