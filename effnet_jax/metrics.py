"""The loss, and what counts as correct: accuracy by one label or a set, by class, the mistakes."""

from collections.abc import Sequence
from typing import NamedTuple

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

    Nothing is correct where a logit is not finite.

    Returns images, those not masked; count, those with a label; top1 and top5, correct predictions;
    and, where labels are [N], loss, the cross-entropy over the choices.
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
    """Logits whose highest is one of the choices; not -inf elsewhere: 0 * -inf would be NaN."""
    lowest = jnp.finfo(logits.dtype).min
    return logits if choices is None else jnp.where(choices[None], logits, lowest)


CONFUSED = 1000  # Most classes whose confusions are counted: their number is its square.
MISTAKES = 100  # That are kept, of an evaluation.


class Outcomes(NamedTuple):
    """What an evaluation by one label an image counts by class, and its worst mistakes.

    `counts`, int32: [classes, classes], images by label and prediction; with more classes than
    CONFUSED [classes, 2], images by label that are wrong and right. The others are [MISTAKES], of
    the mistakes with the most probable predictions, worst first: the probability, -1 where there
    are fewer mistakes, the record, its label, and what it was taken for.
    """

    counts: jax.Array | np.ndarray
    probability: jax.Array | np.ndarray
    record: jax.Array | np.ndarray
    label: jax.Array | np.ndarray
    predicted: jax.Array | np.ndarray


def no_outcomes(classes: int) -> Outcomes:
    """The outcomes of no images."""
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
    """Adds a batch as for `metric_sums`, with labels [N]; `first` is the number of its first."""
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
    """Images and correct predictions of each class, [classes] each, from `Outcomes.counts`."""
    right = counts.diagonal() if counts.shape[0] == counts.shape[1] else counts[:, 1]
    return counts.sum(1), right


def mean_per_class(counts: np.ndarray) -> float:
    """The mean over the classes that have images of their fractions of correct predictions."""
    images, right = (each[counts.any(1)] for each in class_counts(counts))
    return float(np.mean(right / images))


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
