"""The one evaluation, for the training loop and for eval.py: exact over every record."""

import collections
from collections.abc import Callable, Iterator
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
from effnet_jax.metrics import choose_classes, metric_sums
from effnet_jax.run import environment, writers
from effnet_jax.run.processes import Alone

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
        self, model: nn.Module, config: ConfigDict, source: Source, mesh: Mesh, processes: Alone
    ):
        shards = parallel.data_shards(mesh)
        parallel.check_batch("eval_batch_size", config.eval_batch_size, shards)
        self._config, self._mesh, self._processes = config, mesh, processes
        self._resolution = model.architecture.resolution
        choices = choose_classes(config.data.eval_classes, source.classes, config.model.num_classes)
        step = make_eval_step(model, config.preprocess, choices)
        self._step = jax.jit(step, out_shardings=parallel.replicated(mesh))
        self.read(source)

    def read(self, source: Source) -> None:
        """Makes the next calls evaluate on another split with the same classes."""
        self._examples = len(source)
        parallel.check_processes(len(source), "evaluation")
        place = jax.process_index(), jax.process_count()
        self._batches = pipeline.eval_batches(source, self._config, self._resolution, *place)

    def __call__(
        self, params: PyTree, batch_stats: PyTree, should_stop: Callable[[], bool] = lambda: False
    ) -> Metrics:
        """Top-1 and top-5 as fractions, mean cross-entropy (no smoothing), and the count.

        With sets of labels there is no cross-entropy, and images without a label don't count.
        Raises Interrupted before a batch where `should_stop()` is True.
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


def evaluate(
    weights: Any, config: ConfigDict, data: dict[str, Source], label: str, processes: Alone
) -> Iterator[tuple[str, Metrics]]:
    """Evaluates weights on data sets, compiled once; yields the name and the metrics of each.

    `weights` are a `weights.Weights`, whose classes have to include those of the data, by name; the
    preprocessing in `config` is theirs. Each of `data` is closed after its evaluation: together
    they may be too many open files. All processes give the same `label` of the weights.
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
        evaluator.read(data.pop(name))
        yield name, evaluator(variables["params"], variables["batch_stats"])
