"""The training loss, and the evaluation's."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy by example, [N], with labels smoothed towards uniform.

    Args:
      logits: [N, classes], float32.
      labels: [N], int32.
      smoothing: weight of the uniform distribution.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))
