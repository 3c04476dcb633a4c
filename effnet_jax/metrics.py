"""The loss, accuracies for single labels and sets of labels, counts by class, and mistakes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from effnet_jax.errors import UserError

cross_entropy = optax.softmax_cross_entropy  # (logits, target distributions), per example.


def smooth_targets(labels: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Converts labels [N] to float32 distributions [N, classes], smoothed towards uniform."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=jnp.float32), smoothing)


def metric_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, choices: np.ndarray | None = None
) -> dict[str, jax.Array]:
    """Computes the sums of metrics over a batch.

    Args:
      logits: float32 [N, classes].
      labels: int32 [N]; or [N, K] if an image may show several classes, padded with -1. Any of them
        is correct, and images without a label are not counted, as in arXiv 2006.07159.
      mask: float32 [N], 0 for padding.
      choices: bool [classes], the classes that may be predicted; None: all.

    A label is in the top five if fewer than five logits are higher: ties are hits, as in
    tf.nn.in_top_k of the references. For top1, the first of equal logits counts, as in tf.argmax.
    No prediction is correct if a logit of the image is not finite.

    Returns:
      images, those not masked; count, those with a label; top1 and top5, correct predictions; and,
      if labels are [N], loss, the cross-entropy over the choices.
    """
    logits, lowest = _among(logits, choices), jnp.finfo(logits.dtype).min
    sets = labels.reshape(len(labels), -1)
    counted = jnp.where((sets >= 0).any(-1), mask, 0)
    own = jnp.take_along_axis(logits, sets, -1, mode="clip")
    higher = (logits[:, None, :] > own[:, :, None]).sum(-1)
    finite = jnp.isfinite(logits).all(-1, keepdims=True)
    in_five = ((higher < 5) & (own > lowest) & (sets >= 0) & finite).any(-1)
    is_first = ((sets == logits.argmax(-1)[:, None]) & finite).any(-1)
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


def _among(logits: jax.Array, choices: np.ndarray | None) -> jax.Array:
    """Sets the logits of other classes to the least float, not -inf: 0 * -inf would be NaN."""
    lowest = jnp.finfo(logits.dtype).min
    return logits if choices is None else jnp.where(choices[None], logits, lowest)


CONFUSED = 1000  # Most classes with a confusion matrix, whose size is their square.
MISTAKES = 100  # Number of mistakes that an evaluation keeps.


class Outcomes(NamedTuple):
    """Counts by class, and the worst mistakes, of an evaluation with one label per image.

    Attributes:
      counts: int32 [classes, classes], images by label and prediction; with more classes than
        CONFUSED, [classes, 2], wrong and right images by label.
      probability, record, label, predicted: [MISTAKES], for the mistakes with the most probable
        predictions, worst first. Unused places have probability -1.
    """

    counts: jax.Array | np.ndarray
    probability: jax.Array | np.ndarray
    record: jax.Array | np.ndarray
    label: jax.Array | np.ndarray
    predicted: jax.Array | np.ndarray


def no_outcomes(classes: int) -> Outcomes:
    """Returns the outcomes of no images, to which `add_outcomes` adds."""
    numbers = (np.zeros(MISTAKES, np.int32) for _ in range(3))
    counts = np.zeros((classes, classes if classes <= CONFUSED else 2), np.int32)
    return Outcomes(counts, np.full(MISTAKES, -1, np.float32), *numbers)


def add_outcomes(
    before: Outcomes,
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    first: jax.Array | int,
    choices: np.ndarray | None = None,
) -> Outcomes:
    """Adds a batch as in `metric_sums`, with labels [N]; `first` is its first record's number."""
    logits = _among(logits, choices)
    predicted = logits.argmax(-1).astype(jnp.int32)
    wrong = (predicted != labels) & (mask > 0)
    is_whole = before.counts.shape[0] == before.counts.shape[1]
    column = predicted if is_whole else (predicted == labels).astype(jnp.int32)
    probability = jnp.where(wrong, jnp.nan_to_num(jax.nn.softmax(logits).max(-1)), -1)
    record = first + jnp.arange(len(labels), dtype=jnp.int32)
    new = probability, record, labels, predicted
    joined = [jnp.concatenate(pair) for pair in zip(before[1:], new, strict=True)]
    kept = jax.lax.top_k(joined[0], MISTAKES)[1]
    counts = jnp.asarray(before.counts).at[labels, column].add(mask.astype(jnp.int32))
    return Outcomes(counts, *(each[kept] for each in joined))


def class_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and correct predictions by class, [classes] each, from `Outcomes.counts`."""
    right = counts.diagonal() if counts.shape[0] == counts.shape[1] else counts[:, 1]
    return counts.sum(1), right


def mean_per_class(counts: np.ndarray) -> float:
    """Returns the fraction of correct predictions, averaged over the classes that have images."""
    images, right = (each[counts.any(1)] for each in class_counts(counts))
    return float(np.mean(right / images))


def choose_classes(
    names: Sequence[str], classes: tuple[str, ...], outputs: int | None
) -> np.ndarray | None:
    """Returns bools for a model's outputs: whether their class is in `names`.

    Args:
      names: `config.data.eval_classes`; if empty, the result is None, for all classes.
      classes: classes of the data, by label.
      outputs: number of outputs; None: one for each of `classes`.
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
