"""Features of images, and their accuracy with logistic regression and nearest neighbours.

The network is not trained: its weights do not change.
"""

import dataclasses
import itertools
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import models, parallel
from effnet_jax.data import pipeline
from effnet_jax.data.preprocess import normalize
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError, check_choice
from effnet_jax.metrics import mean_per_class

PyTree = Any

L2 = tuple(np.logspace(-6, 5, 45).tolist())  # As in arXiv 1805.08974, section 3.
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
HELD_OUT = 0.2  # Fraction of each training class on which the l2 is chosen.
ITERATIONS = 300  # Maximum for L-BFGS, for each l2.


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a split.

    `features` is float32 [n, size], `labels` int32 [n], and `files` has n names. `weights`,
    `layer`, `data` and `identity` describe the origin of the features.
    """

    features: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    files: tuple[str, ...]
    weights: str
    layer: str
    data: str
    identity: str

    def save(self, path: pathlib.Path) -> None:
        """Writes an .npz atomically, which can be read without pickle; raises OSError."""
        temporary = path.with_name(f"{path.name}.tmp.npz")
        np.savez(temporary, **{key: np.asarray(value) for key, value in vars(self).items()})
        os.replace(temporary, path)


def load(path: pathlib.Path) -> Features:
    """Reads a file of `Features.save`; raises UserError for any other file."""
    names = [field.name for field in dataclasses.fields(Features)]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"can't read features from {path}: {error}. effnet-jax features writes them"
        ) from None
    lists = {name: tuple(map(str, values[name])) for name in ("classes", "files")}
    texts = {name: str(values[name]) for name in ("weights", "layer", "data", "identity")}
    return Features(**{**values, **lists, **texts})


def split(features: Features, share: float) -> tuple[Features, Features]:
    """Returns the features without a share of each class, and that share; see `held_out`."""
    out = held_out(features.labels, share)

    def part(chosen: np.ndarray, name: str) -> Features:
        files = tuple(itertools.compress(features.files, chosen))
        taken = {"features": features.features[chosen], "labels": features.labels[chosen]}
        return dataclasses.replace(features, **taken, files=files, data=f"{features.data}[{name}]")

    return part(~out, f"-{share:.0%}"), part(out, f"{share:.0%}")


def match(train: Features, test: Features) -> Features:
    """Returns test features with the training set's labels; classes are matched by name.

    Raises UserError if the weights or layers differ, or the training data lacks a class.
    """
    for name in ("weights", "layer"):
        if (one := getattr(train, name)) != (other := getattr(test, name)):
            raise UserError(f"the training features are of {name} {one}, and the test's of {other}")
    if unknown := sorted({*test.classes} - {*train.classes}):
        raise UserError(
            f"the test data has {len(unknown)} classes that the training data lacks: "
            f"{', '.join(unknown[:5])}"
        )
    places = np.array([train.classes.index(name) for name in test.classes])
    return dataclasses.replace(test, labels=places[test.labels], classes=train.classes)


def extract(
    variables: PyTree,
    config: ConfigDict,
    source: Source,
    layer: str = "pre_logits",
    track: Callable[[Iterator, int], Iterator] = lambda batches, count: batches,
    **names: str,
) -> Features:
    """Computes the features of a split's images, in order.

    Args:
      variables: variables of the network, as in `weights.Weights`.
      config: the whole config, as from `variants.choose_data`.
      source: the split; its classes may differ from the network's.
      layer: one of the network's features; [N, h, w, C] is averaged over h and w.
      track: called with the batches and their number, to show progress.
      names: `weights`, `data` and `identity` of the result.

    Raises UserError for an unknown layer, sets of labels, or features that are not finite.
    """
    if np.ndim(pipeline.read(source, 0)["label"]):
        raise UserError("images have sets of labels; a probe needs one label per image")
    model, mesh = models.build(config.model), parallel.data_mesh()
    parallel.check_batch("eval_batch_size", config.eval_batch_size, parallel.data_shards(mesh))
    resolution = model.architecture.resolution
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), np.float32)
    known = jax.eval_shape(lambda x: model.apply(variables, x, train=False)[1], image)
    check_choice("--layer", layer, known)

    def step(variables, batch):
        images = normalize(batch["image"], config.preprocess.mean, config.preprocess.std)
        x = model.apply(variables, images, train=False)[1][layer].astype(np.float32)
        return x.mean((1, 2)) if x.ndim == 4 else x

    step = jax.jit(step, out_shardings=parallel.replicated(mesh))
    variables = jax.device_put(variables, parallel.replicated(mesh))
    batches = pipeline.eval_batches(source, config, resolution)
    outputs, labels = [], []
    for batch in track(batches.read_ahead(config.data), len(batches)):
        real = batch["mask"] > 0
        outputs.append((step(variables, parallel.put_batch(batch, mesh)), real))
        labels.append(batch["label"][real])
    features = np.concatenate([np.asarray(each)[real] for each, real in outputs])
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        raise UserError(
            f"the features of {len(bad)} images are not finite; the first: "
            f"{source.describe(int(bad[0]))}"
        )
    files = tuple(source.describe(index) for index in range(len(source)))
    labels = np.concatenate(labels)
    return Features(features, labels, source.classes, files, layer=layer, **names)


class Logistic:
    """Logistic regression on standardised features [n, d], fitted by `fit`.

    Classes are those with labels in 0 to `classes` - 1. The loss is the mean cross-entropy plus
    l2 / 2 times the sum of squared weights, without the bias: scikit-learn's with C = 1 / (n l2).
    As there, two classes have one column of weights, for the second.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
        self._mean, std = features.mean(0, np.float64), features.std(0, np.float64)
        self._scale = 1 / np.where(std > 1e-6 * np.abs(self._mean) + 1e-12, std, np.inf)
        self._x = self._standardise(features)
        self._targets = np.zeros((len(labels), classes), np.float32)
        self._targets[np.arange(len(labels)), labels] = 1
        columns = 1 if classes == 2 else classes
        self._weights = np.zeros((self._x.shape[1] + 1, columns))  # The bias is last.
        self.converged = False

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        return ((features - self._mean) * self._scale).astype(np.float32)

    def _logits(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        logits = x @ weights[:-1].astype(np.float32) + weights[-1]
        return np.pad(logits, ((0, 0), (1, 0))) if logits.shape[1] == 1 else logits

    def loss(self, flat: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Returns the loss and its gradient at the flattened weights."""
        weights = flat.reshape(self._weights.shape)
        logits = self._logits(self._x, weights)
        log_sum = _log_sum(logits)
        loss = (log_sum[:, 0] - (logits * self._targets).sum(1)).mean()
        error = (np.exp(logits - log_sum) - self._targets) / len(logits)
        error = error[:, -weights.shape[1] :]
        gradient = np.concatenate([self._x.T @ error.astype(np.float32), error.sum(0)[None]])
        gradient[:-1] += l2 * weights[:-1]
        return loss + l2 / 2 * (weights[:-1] ** 2).sum(), gradient.ravel()

    def fit(self, l2: float) -> float:
        """Fits the weights by L-BFGS, starting at the current ones; returns the loss."""
        import scipy.optimize

        options = {"maxiter": ITERATIONS, "maxcor": 20, "gtol": 1e-6, "ftol": 1e-9}
        start, form = self._weights.ravel(), {"jac": True, "method": "L-BFGS-B"}
        result = scipy.optimize.minimize(self.loss, start, (l2,), options=options, **form)
        self._weights = result.x.reshape(self._weights.shape)
        self.converged = result.nit < ITERATIONS
        return float(result.fun)

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the log probabilities of the classes, [n, classes]."""
        logits = self._logits(self._standardise(features), self._weights)
        return logits - _log_sum(logits)


def _log_sum(logits: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials along the last axis, which is kept."""
    most = logits.max(-1, keepdims=True)
    return most + np.log(np.exp(logits - most).sum(-1, keepdims=True))


def held_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Draws the share of each class to hold out, at least one example of two; returns bools."""
    chosen, rng = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        count = max(int(len(of_class) * share), int(len(of_class) > 1))
        chosen[of_class[:count]] = True
    return chosen


@dataclasses.dataclass(frozen=True)
class Score:
    """The accuracy of a method on test data; the metrics are those of `evaluation.evaluate`."""

    method: str  # "logistic" or "neighbours".
    setting: str  # The l2 or the k.
    top1: float
    mean_per_class: float
    loss: float | None
    count: int


def score(labels: np.ndarray, predicted: np.ndarray, *method: str, loss: float | None = None):
    """Returns the `Score` of predictions; `method` is the name of the method and its setting."""
    names, index = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    counts = np.zeros((len(names),) * 2, np.int64)
    np.add.at(counts, (index[: len(labels)], index[len(labels) :]), 1)
    right = float(np.mean(labels == predicted))
    return Score(*method, right, mean_per_class(counts), loss, len(labels))


def fit_logistic(
    train: Features,
    test: Features,
    metric: str = "top1",
    track: Callable[[Sequence[float]], Iterable[float]] = lambda values: values,
) -> tuple[Score, list[str]]:
    """Fits a logistic regression to `train` and tests it on `test`, which has the same classes.

    HELD_OUT of each class of `train` is held out to choose the l2 with the best `metric`, and among
    equal ones with the least loss. Then the regression is fitted to all of `train`. Also returns
    notes, if this l2 is at the end of the range or its fit did not converge.

    Raises UserError if `train` has fewer than two classes, or only one image of each.
    """
    present, labels = np.unique(train.labels, return_inverse=True)
    if len(present) < 2:
        raise UserError(
            f"all {len(train.labels)} training images are of one class, "
            f"{train.classes[present[0]]!r}; a probe needs at least two"
        )
    out = held_out(labels, HELD_OUT)
    if not out.any():
        raise UserError("each class has one training image, so none can be held out; add images")
    model, trials = Logistic(train.features[~out], labels[~out], len(present)), []
    for l2 in track(sorted(L2, reverse=True)):  # Weights start at 0; each fit is close to the last.
        model.fit(l2)
        log_p = model.log_probabilities(train.features[out])
        loss = -float(log_p[np.arange(out.sum()), labels[out]].mean())
        trials.append((getattr(score(labels[out], log_p.argmax(1), "", ""), metric), -loss, l2))
    l2 = max(trials)[2]
    model = Logistic(train.features, labels, len(present))
    model.fit(l2)
    notes = [f"l2={l2:.3g} is at the end of the range"] if l2 in (L2[0], L2[-1]) else []
    notes += [] if model.converged else [f"not converged in {ITERATIONS} iterations"]
    log_p = model.log_probabilities(test.features)
    at = np.searchsorted(present, test.labels).clip(max=len(present) - 1)
    known = present[at] == test.labels  # A class without training images is never predicted.
    loss = -float(log_p[np.arange(len(at)), at].mean()) if known.all() else None
    predicted = present[log_p.argmax(1)]
    return score(test.labels, predicted, "logistic", f"l2={l2:.3g}", loss=loss), notes


def nearest_neighbours(train: Features, test: Features) -> Iterator[Score]:
    """Yields scores of the k nearest neighbours by cosine similarity, for each k in NEIGHBOURS.

    A k above the number of training images is skipped. Each neighbour has one vote; among classes
    with equal votes the nearest neighbour decides.
    """
    reference, ks = _unit(train.features), [k for k in NEIGHBOURS if k <= len(train.labels)]
    predicted = {k: [] for k in ks}
    for first in range(0, len(test.labels), 256):
        similarity = _unit(test.features[first : first + 256]) @ reference.T
        nearest = np.sort(np.argpartition(-similarity, ks[-1] - 1)[:, : ks[-1]])
        order = np.argsort(-np.take_along_axis(similarity, nearest, 1), kind="stable")
        nearest = np.take_along_axis(nearest, order, 1)
        votes = np.zeros((len(nearest), len(train.classes)))
        for place in range(ks[-1]):
            # Earlier votes count a little more; together this adds less than a whole vote.
            votes[np.arange(len(votes)), train.labels[nearest[:, place]]] += 1 + 2.0 ** -(place + 2)
            if place + 1 in predicted:
                predicted[place + 1].append(votes.argmax(1))
    for k, each in predicted.items():
        yield score(test.labels, np.concatenate(each), "neighbours", f"k={k}")


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
