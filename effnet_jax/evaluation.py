"""The one evaluation, for the training loop and for eval.py: exact over every record."""

import collections
import copy
import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import models, parallel
from effnet_jax.data import pipeline, sources
from effnet_jax.data.preprocess import normalize
from effnet_jax.data.sources import Source
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.metrics import choose_classes, mean_corruption_error, metric_sums
from effnet_jax.run import environment, files, writers
from effnet_jax.run.processes import ALONE, Alone

PyTree = Any
Metrics = dict[str, float | int]


def make_eval_step(
    model: nn.Module, preprocess: ConfigDict, choices: np.ndarray | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """`(params, batch_stats, batch) -> sums`, as from `metrics.metric_sums`."""

    def eval_step(params: PyTree, batch_stats: PyTree, batch: dict[str, jax.Array]):
        images = normalize(batch["image"], preprocess.mean, preprocess.std)
        logits, _ = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        return metric_sums(logits, batch["label"], batch["mask"], choices)

    return eval_step


class Evaluator:
    """Evaluates weights on one split, any number of times, with one compilation."""

    def __init__(
        self,
        model: nn.Module,
        config: ConfigDict,
        source: Source,
        mesh: Mesh,
        processes: Alone = ALONE,
    ):
        parallel.check_batch("eval_batch_size", config.eval_batch_size, mesh.size)
        self._config, self._mesh, self._processes = config, mesh, processes
        self._resolution = model.architecture.resolution
        choices = choose_classes(config.data.eval_classes, source.classes, config.model.num_classes)
        step = make_eval_step(model, config.preprocess, choices)
        self._step = jax.jit(step, out_shardings=parallel.replicated(mesh))
        self._read(source)

    def _read(self, source: Source) -> None:
        self._examples = len(source)
        parallel.check_processes(len(source), "evaluation")
        place = jax.process_index(), jax.process_count()
        self._batches = pipeline.eval_batches(source, self._config, self._resolution, *place)

    def on(self, source: Source) -> "Evaluator":
        """This evaluation on another split with the same classes, not compiled again."""
        other = copy.copy(self)
        other._read(source)
        return other

    def __call__(
        self, params: PyTree, batch_stats: PyTree, should_stop: Callable[[], bool] = lambda: False
    ) -> Metrics:
        """Top-1 and top-5 as fractions, mean cross-entropy (no smoothing), and the count.

        With sets of labels there is no cross-entropy, and images without a label don't count.

        Args:
          params, batch_stats: the weights.
          should_stop: called before every batch; Interrupted is raised when it returns True.
        """
        # Weights of a sharded state are gathered once, not for every batch.
        weights = jax.device_put((params, batch_stats), parallel.replicated(self._mesh))
        totals = collections.Counter()
        for number, batch in enumerate(self._batches.read_ahead(self._config.data)):
            self._processes.at("evaluation" if number else "compile", number)
            if should_stop():
                raise Interrupted("the evaluation was stopped")
            sums = self._step(*weights, parallel.put_batch(batch, self._mesh))
            totals.update({key: float(value) for key, value in jax.device_get(sums).items()})
        images, count = round(totals["images"]), round(totals["count"])
        if images != self._examples:
            raise AssertionError(f"evaluated {images} of {self._examples} images")
        if not count:
            raise UserError(f"none of the {images} images has a label")
        means = {key: totals[key] / count for key in ("top1", "top5", "loss") if key in totals}
        return {**means, "count": count}


def _open_sources(config: ConfigDict, names: Sequence[str]) -> dict[str, Source]:
    """The evaluation splits of data sets by name; one UserError for all that can't be read."""
    found, errors = {}, {}
    for name in names:
        data = config.data.copy_and_resolve_references()
        data.name = name
        try:
            found[name] = sources.open_source(data, data.eval_split)
        except UserError as error:
            errors[name] = error
    for name, error in errors.items():
        if len(errors) == 1:
            raise error
        raise UserError(
            f"{len(errors)} of {len(names)} data sets can't be read: {', '.join(errors)}. "
            f"The first: {error}\nWithout '/{name.rpartition('/')[2]}' it prepares all of them."
        )
    return found


def evaluate(
    weights: Any, config: ConfigDict, label: str, csv: str | None = None, processes: Alone = ALONE
) -> dict[str, Any]:
    """Evaluates weights on a data set, or on a set of corruptions.

    Args:
      weights: a `weights.Weights`; the classes of the data have to be among theirs, by name.
      config: from `experiments.choose_data`.
      label: of the weights in the result: ema, raw, or their file.
      csv: a file under results/ to add a row to, for each corruption and severity if there are any.

    Returns:
      top1, top5, loss, count, step, weights; without the loss where images have sets of labels. For
      a set of corruptions: mce, top1 and error (both means; the error by corruption), count, step,
      weights.
    """
    processes.watch(config.processes)
    mesh, name, split = parallel.data_mesh(), config.data.name, config.data.eval_split
    parts = [f"{name}/{each}_{level}" for each in config.corruptions for level in config.severities]
    found = {
        part: sources.with_classes(source, weights.classes, split, writers.say)
        for part, source in _open_sources(config, parts or [name]).items()
    }
    model = models.build(config.model)
    evaluator = Evaluator(model, config, next(iter(found.values())), mesh, processes)
    run = {"step": weights.step, "weights": label}

    def facts() -> dict[str, Any]:
        prints = {name: sources.fingerprint(source) for name, source in found.items()}
        return environment.start_facts(config, prints) | run

    processes.check_same("start", facts, config.processes.start_seconds)
    variables = jax.device_put(weights.variables, parallel.replicated(mesh))
    results = {}
    for part in list(found):
        # Taken out to close its files afterwards: all sets together may have too many to be open.
        here = evaluator.on(found.pop(part))
        results[part] = {**here(variables["params"], variables["batch_stats"]), **run}
        if parts:
            writers.say(f"{part}: top-1 {results[part]['top1']:.2%}")
        if csv is not None and processes.is_first:
            row = _row(config, f"{part}/{split}", weights, results[part])
            files.append_csv(pathlib.Path(csv), [row])
    if not parts:
        return results[name]
    errors = {
        each: [1 - results[f"{name}/{each}_{level}"]["top1"] for level in config.severities]
        for each in config.corruptions
    }
    return {
        "mce": mean_corruption_error(errors, config.corruptions),
        "top1": statistics.fmean(result["top1"] for result in results.values()),
        "error": {each: statistics.fmean(values) for each, values in errors.items()},
        "count": sum(result["count"] for result in results.values()),
        **run,
    }


def _row(config: ConfigDict, data: str, weights: Any, result: Metrics) -> dict[str, Any]:
    """A row of results: the data, the network, the run, the result and the machine."""
    # Nobody knows how weights from elsewhere were trained.
    training = config if weights.step is not None else dict.fromkeys(config)
    return {
        "data": data,
        "phi": config.model.phi,
        **dataclasses.asdict(models.coefficients(config.model)),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"])),
        **{key: training[key] for key in ("batch_size", "epochs", "seed")},
        # The same columns for every data set.
        **{key: result.get(key) for key in ("top1", "top5", "loss", "count", "step", "weights")},
        **environment.describe_machine(),
    }
