"""Evaluation for the training loop and for eval.py, exact over all records."""

import collections
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import models, parallel
from effnet_jax.data import pipeline, sources
from effnet_jax.data.preprocess import normalize
from effnet_jax.data.sources import Source
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.metrics import (
    Outcomes,
    add_outcomes,
    choose_classes,
    mean_per_class,
    metric_sums,
    no_outcomes,
)
from effnet_jax.run import environment, writers
from effnet_jax.run.processes import Alone

PyTree = Any
Metrics = dict[str, float | int]
# (name of the data, its records with the network's classes, their outcomes); see `evaluate`.
Details = Callable[[str, Source, Outcomes | None], None]


def make_eval_step(
    model: nn.Module, preprocess: ConfigDict, choices: np.ndarray | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """Returns `(params, batch_stats, batch, outcomes, first) -> sums`, see `metrics.metric_sums`.

    With the `outcomes` of earlier batches, sums also has the outcomes including this batch, whose
    first record has the number `first`. Its `infinite` is the number of images with a logit that is
    not finite.
    """

    def eval_step(
        params: PyTree,
        batch_stats: PyTree,
        batch: dict[str, jax.Array],
        outcomes: Outcomes | None = None,
        first: jax.Array | int = 0,
    ):
        images = normalize(batch["image"], preprocess.mean, preprocess.std)
        logits, _ = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        label, mask = batch["label"], batch["mask"]
        sums = metric_sums(logits, label, mask, choices)
        sums["infinite"] = jnp.where(jnp.isfinite(logits).all(-1), 0, mask).sum()
        if outcomes is not None:
            sums["outcomes"] = add_outcomes(outcomes, logits, label, mask, first, choices)
        return sums

    return eval_step


class Evaluator:
    """Evaluates weights on one split, any number of times, with one compilation.

    `outcomes` are those of the last evaluation; None if its images have sets of labels.
    `infinite` is the number of its images for which an output of the network was not finite.
    """

    def __init__(
        self, model: nn.Module, config: ConfigDict, source: Source, mesh: Mesh, processes: Alone
    ):
        shards = parallel.data_shards(mesh)
        parallel.check_batch("eval_batch_size", config.eval_batch_size, shards)
        self._config, self._mesh, self._processes = config, mesh, processes
        self.outcomes: Outcomes | None = None
        self.infinite = 0
        self._resolution = model.architecture.resolution
        choices = choose_classes(config.data.eval_classes, source.classes, config.model.num_classes)
        self._outputs = config.model.num_classes or len(source.classes)
        step = make_eval_step(model, config.preprocess, choices)
        self._step = jax.jit(step, out_shardings=parallel.replicated(mesh), donate_argnums=3)
        self.read(source)

    def read(self, source: Source) -> None:
        """Sets the split for the next calls; it must have the same classes."""
        self._examples = len(source)
        parallel.check_processes(len(source), "evaluation")
        place = jax.process_index(), jax.process_count()
        self._batches = pipeline.eval_batches(source, self._config, self._resolution, *place)

    def __call__(
        self, params: PyTree, batch_stats: PyTree, should_stop: Callable[[], bool] = lambda: False
    ) -> Metrics:
        """Evaluates weights on the split.

        Returns top-1, top-5 and the mean of top-1 over classes as fractions, the mean cross-entropy
        (no smoothing), and the count; for sets of labels, top-1, top-5 and the count of images with
        a label. Raises Interrupted if `should_stop()` is True before a batch.
        """
        # Gathers the weights of a sharded state once, not for every batch.
        weights = jax.device_put((params, batch_stats), parallel.replicated(self._mesh))
        totals, outcomes = collections.Counter(), None
        for number, batch in enumerate(self._batches.read_ahead(self._config.data)):
            self._processes.at("evaluation" if number else "compile", number)
            if should_stop():
                raise Interrupted("the evaluation was stopped")
            if not number and batch["label"].ndim == 1:
                outcomes = no_outcomes(self._outputs)
                outcomes = jax.device_put(outcomes, parallel.replicated(self._mesh))
            first = np.int32(number * self._config.eval_batch_size)
            sums = self._step(*weights, parallel.put_batch(batch, self._mesh), outcomes, first)
            outcomes = sums.pop("outcomes", None)
            totals.update({key: float(value) for key, value in jax.device_get(sums).items()})
        images, count = round(totals["images"]), round(totals["count"])
        if images != self._examples:
            raise AssertionError(f"evaluated {images} of {self._examples} images")
        if not count:
            raise UserError(f"none of the {images} images has a label")
        means = {key: totals[key] / count for key in ("top1", "top5", "loss") if key in totals}
        self.outcomes, self.infinite = jax.device_get(outcomes), round(totals["infinite"])
        if outcomes is not None:
            means["mean_per_class"] = mean_per_class(self.outcomes.counts)
        return {**means, "count": count}


def evaluate(
    weights: Any,
    config: ConfigDict,
    data: dict[str, Source],
    label: str,
    processes: Alone,
    details: Details | None = None,
) -> Iterator[tuple[str, Metrics]]:
    """Evaluates weights on data sets, compiled once; yields the name and the metrics of each.

    `weights` is a `weights.Weights`. Its classes must include those of the data, by name, and
    `config` must have its preprocessing. Each of `data` is closed after its evaluation, because
    together they may have too many open files. `label` names the weights and must be the same in
    all processes. The first process calls `details` after each evaluation.
    """
    processes.watch(config.processes)
    mesh, split = parallel.data_mesh(), config.data.eval_split
    writers.say(f"evaluating on {next(iter(data.values())).summary()}")
    if len(data) > 1:
        writers.say(f"and on {len(data) - 1} other data sets of its kind")
    for name, source in data.items():
        data[name] = sources.with_classes(source, weights.classes, split, writers.say)
    model = models.build(config.model)
    evaluator = Evaluator(model, config, next(iter(data.values())), mesh, processes)
    prints = {name: sources.fingerprint(source) for name, source in data.items()}
    processes.check_same(
        "start",
        lambda: environment.start_facts(config, prints) | {"step": weights.step, "weights": label},
        config.processes.start_seconds,
    )
    variables = jax.device_put(weights.variables, parallel.replicated(mesh))
    for name in list(data):
        source = data.pop(name)
        evaluator.read(source)
        result = evaluator(variables["params"], variables["batch_stats"])
        if evaluator.infinite:
            raise UserError(
                f"{name}: the network's outputs are not finite for {evaluator.infinite:,} of "
                f"{len(source):,} images. Either weights or statistics are far too large, as after "
                "diverged training, or the preprocessing belongs to another network"
            )
        if details is not None and processes.is_first:
            details(name, source, evaluator.outcomes)
        del source
        yield name, result


def save_outcomes(path: pathlib.Path, outcomes: Outcomes, step: int) -> None:
    """Writes outcomes for `read_outcomes`, atomically; raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp.npz")
    np.savez_compressed(temporary, step=step, **outcomes._asdict())
    os.replace(temporary, path)


def read_outcomes(path: pathlib.Path) -> tuple[int, Outcomes] | None:
    """Reads the step and the outcomes in a file; None if it is missing or can't be read."""
    try:
        with np.load(path) as arrays:
            return int(arrays["step"]), Outcomes(*(arrays[key] for key in Outcomes._fields))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
