"""The loss, and what counts as correct: accuracy by one label or a set, errors under corruption."""

import statistics
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from effnet_jax.errors import UserError


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


def metric_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, choices: np.ndarray | None = None
) -> dict[str, jax.Array]:
    """Sums over a batch.

    Args:
      logits: [N, classes], float32.
      labels: int32; [N], or [N, K] where an image may show several classes, its row filled up with
        -1. A prediction is correct where it is any of them. An image without any is left out, as by
        the authors of such labels (arXiv 2006.07159).
      mask: float32 [N]: 0 for what only fills up the batch.
      choices: bool [classes]: the classes that a prediction may be, by default all.

    Returns:
      images: those of the mask; count: those of them that have a label; top1, top5: how many of
      these are correct; and, where labels are [N], loss: their cross-entropy over the choices.
    """
    if choices is not None:
        # Finite, because the loss multiplies it by 0.
        logits = jnp.where(choices, logits, jnp.finfo(logits.dtype).min)
    sets = labels.reshape(len(labels), -1)
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    hits = (best[:, :, None] == sets[:, None, :]).any(-1)
    counted = mask * (sets >= 0).any(-1)
    sums = {
        "top1": (hits[:, 0] * counted).sum(),
        "top5": (hits.any(-1) * counted).sum(),
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
    """The outputs of a model whose classes are named, as bool [outputs]; None for all.

    Args:
      names: `config.data.eval_classes`; none are all.
      classes: of the data, by label.
      outputs: of the model; None: one for each class.
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


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], reference: Mapping[str, float]
) -> float:
    """mCE (arXiv 1903.12261): the mean over corruptions of error / reference's error.

    Args:
      errors: top-1 errors, fractions, of every corruption: one for each severity.
      reference: error of the reference network, by corruption: its mean over the severities.

    Returns:
      1.0 where the errors are the reference's. The paper prints it as a percentage.
    """
    return statistics.fmean(
        statistics.fmean(errors[corruption]) / reference[corruption] for corruption in reference
    )
