"""The training loss, and the evaluation's."""

import jax
import jax.numpy as jnp
import optax


def smooth_targets(labels: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Labels [N] as distributions [N, classes], float32, smoothed towards uniform.

    Args:
      labels: [N], int32.
      classes: how many there are.
      smoothing: weight of the uniform distribution.
    """
    one_hot = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Softmax cross-entropy by example, [N].

    Args:
      logits: [N, classes], float32.
      targets: distributions over the classes, [N, classes].
    """
    return optax.softmax_cross_entropy(logits, targets)
