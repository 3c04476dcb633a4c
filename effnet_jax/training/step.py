"""The training step: pure, `(state, batch, seed) -> (state, metrics)`."""

import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from effnet_jax.loss import cross_entropy, smooth_targets
from effnet_jax.models.layers import normalize_images
from effnet_jax.training.mixing import is_mixing, mix
from effnet_jax.training.optimizer import ema_decay
from effnet_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def random_key(seed: int | jax.Array, purpose: str, step: int | jax.Array) -> jax.Array:
    """The key for one purpose at one step; nothing random is ever stored."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """The step for a model and an optimizer; not jitted.

    Args:
      model: see `models.build`.
      optimizer: see `optimizer.build_optimizer`.
      config: the whole config.

    Returns:
      A function of the state, a batch (image uint8 [N, H, W, 3], label int32 [N], mask
      float32 [N]) and the run's seed (uint32; an argument, so that runs over seeds share one
      compiled program). Its metrics are loss and correct, summed over the batch, their count, the
      norm of the gradient without weight decay, and that of the new weights and BatchNorm
      statistics, which is finite only if they all are.
    """
    preprocess, smoothing = config.preprocess, config.loss.label_smoothing
    classes = config.model.num_classes

    def train_step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Metrics]:
        rngs = {
            name: random_key(seed, name, state.step) for name in ("dropout", "stochastic_depth")
        }
        images = normalize_images(batch["image"], preprocess.mean, preprocess.std)
        targets = smooth_targets(batch["label"], classes, smoothing)
        if is_mixing(config.augment):
            key = random_key(seed, "mixing", state.step)
            images, targets = mix(images, targets, batch["mask"], config.augment, key)
        count = batch["mask"].sum()

        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            (logits, _), updated = model.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs=rngs
            )
            losses = cross_entropy(logits, targets) * batch["mask"]
            return losses.sum() / jnp.maximum(count, 1), (logits, updated["batch_stats"])

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, batch_stats)), grads = grad_fn(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        step = state.step + 1
        decay = ema_decay(config.ema.decay, step)
        ema = jax.tree.map(
            lambda average, new: decay * average + (1 - decay) * new,
            state.ema,
            {"params": params, "batch_stats": batch_stats},
        )
        correct = (logits.argmax(-1) == batch["label"]) * batch["mask"]
        metrics = {
            "loss": loss * count,
            "correct": correct.sum(),
            "count": count,
            "grad_norm": optax.tree.norm(grads),
            "weight_norm": optax.tree.norm((params, batch_stats)),
        }
        return TrainState(step, params, batch_stats, opt_state, ema), metrics

    return train_step
