"""The loss, and what counts as correct: accuracy by one label or a set, errors under corruption."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from effnet_jax.errors import UserError

cross_entropy = optax.softmax_cross_entropy  # Of logits and target distributions; by example.


def smooth_targets(labels: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Labels [N] as float32 distributions [N, classes], smoothed towards the uniform one."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=jnp.float32), smoothing)


def metric_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, choices: np.ndarray | None = None
) -> dict[str, jax.Array]:
    """Sums over a batch, of logits float32 [N, classes] and mask float32 [N], 0 for padding.

    Labels are int32 [N]; or [N, K] where an image may show several classes, padded with -1: any of
    them is correct, and images without a label are not counted, as in arXiv 2006.07159. `choices`,
    bool [classes], are the classes that a prediction may be; None: all.

    A label is among the best five if fewer than five logits are higher: ties are hits, as in
    tf.nn.in_top_k of the references; but the best one is the first of those that tie, as tf.argmax.

    Returns images, those not masked; count, those with a label; top1 and top5, correct predictions;
    and, where labels are [N], loss, the cross-entropy over the choices.
    """
    lowest = jnp.finfo(logits.dtype).min  # Not -inf: 0 * -inf would be NaN.
    if choices is not None:
        logits = jnp.where(choices[None], logits, lowest)
    sets = labels.reshape(len(labels), -1)
    counted = jnp.where((sets >= 0).any(-1), mask, 0)
    own = jnp.take_along_axis(logits, sets, -1, mode="clip")
    higher = (logits[:, None, :] > own[:, :, None]).sum(-1)
    finite = jnp.isfinite(logits).all(-1, keepdims=True)
    in_five = ((higher < 5) & (own > lowest) & (sets >= 0) & finite).any(-1)
    is_first = (sets == logits.argmax(-1)[:, None]).any(-1)
    sums = {
        "top1": jnp.where(is_first, counted, 0).sum(),
        "top5": jnp.where(in_five, counted, 0).sum(),
        "count": counted.sum(),
        "images": mask.sum(),
    }
    if labels.ndim == 1:
        targets = smooth_targets(labels, logits.shape[-1])
        sums["loss"] = (cross_entropy(logits, targets) * mask).sum()
    return sums


def choose_classes(
    names: Sequence[str], classes: tuple[str, ...], outputs: int | None
) -> np.ndarray | None:
    """Which of a model's `outputs` are classes in `names` (`config.data.eval_classes`), as bools.

    `classes` are the data's, by label. Without `outputs` there is one for each of them. Without
    `names` the result is None, for all.
    """
    if not names:
        return None
    if missing := sorted(set(names) - set(classes)):
        raise UserError(
            f"config.data.eval_classes names {len(missing)} classes that are not among the data's "
            f"{len(classes)}: {', '.join(missing[:5])}"
        )
    chosen = np.zeros(outputs or len(classes), bool)
    chosen[[classes.index(name) for name in names]] = True
    return chosen
