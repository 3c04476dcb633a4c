"""The evaluations of a run: their records, when they are due, and their scores.

Each is an entry of `config.evaluations`, with its own data, preprocessing, weights and epochs: a
second data set, or the first one evaluated more often, needs no code.
"""

import contextlib
import pathlib
from collections.abc import Callable

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import parallel
from effnet_jax.data import folders, pipeline, sources
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError
from effnet_jax.evaluation import Evaluator, save_outcomes
from effnet_jax.metrics import Outcomes
from effnet_jax.run.processes import Alone
from effnet_jax.run.writers import say
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training.state import TrainState

OUTCOMES = "outcomes.npz"  # In a workdir: of the last evaluation that best_metric belongs to.
Scores = dict[str, float | int]  # By NAME/WEIGHTS/METRIC, as in val/ema/top1.


class Evaluations:
    """The evaluations of a resolved config by name: their `sources`, and steps between two."""

    def __init__(
        self, config: ConfigDict, train: Source, model: nn.Module, mesh: Mesh, processes: Alone
    ):
        self.sources = {name: _open(config, name, train) for name in config.evaluations}
        self._config, self._processes = config, processes
        self._outcomes: Outcomes | None = None
        examples = optimizers.epoch_examples(config, len(train))
        self._total = optimizers.duration(config, "epochs", examples)
        usual = optimizers.duration(config, "eval_epochs", examples)
        self._every = {}
        for name, entry in config.evaluations.items():
            own = optimizers.steps(entry.epochs or 0, config.batch_size, examples)
            self._every[name] = max(1, usual if entry.epochs is None else own)
        self._evaluators = {
            name: Evaluator(model, config_lib.for_evaluation(config, name), source, mesh, processes)
            for name, source in self.sources.items()
        }

    def due(self, step: int) -> list[str]:
        """The evaluations after a step: all at the end, and none just before it."""
        if step == self._total:
            return list(self._every)
        left = self._total - step
        every = self._every.items()
        return [name for name, n in every if step and step % n == 0 and left >= n // 2]

    def evaluate(self, state: TrainState, names: list[str], stopped: Callable[[], bool]) -> Scores:
        """The scores of the evaluations `names`; raises Interrupted."""
        scores = {}
        for name in names:
            for weights in self._config.evaluations[name].weights:
                result = self._evaluators[name](*state.weights(weights), should_stop=stopped)
                scores |= {f"{name}/{weights}/{key}": value for key, value in result.items()}
                if self._config.checkpoint.best_metric.rpartition("/")[0] == f"{name}/{weights}":
                    self._outcomes = self._evaluators[name].outcomes
        return scores

    def save_outcomes(self, workdir: pathlib.Path, step: int) -> None:
        """Writes OUTCOMES, if that evaluation has run since it was last written."""
        outcomes, self._outcomes = self._outcomes, None
        if self._processes.is_first and outcomes is not None:
            with contextlib.suppress(OSError):  # The run goes on with a full disk.
                save_outcomes(workdir / OUTCOMES, outcomes, step)


def _open(config: ConfigDict, name: str, train: Source) -> Source:
    """The records of an evaluation; where they are its own, its classes may be some of train's."""
    data, own = config_lib.for_evaluation(config, name).data, config.evaluations[name].data
    data.eval_split = sources.eval_split(data, config.data.data_dir)
    source = sources.open_source(data, data.eval_split)
    parallel.check_processes(len(source), f"evaluation {name!r}")
    if count := sources.count_trained_on(source, data, config.data, train):
        by_content = isinstance(source, folders.FolderSource)
        say(
            f"warning: {count:,} of {len(source):,} images of evaluation {name!r} are trained on, "
            f"with config.data.train_split={config.data.train_split!r}"
            f"{'; files are compared by content' * by_content}"
        )
    best = config.checkpoint.best_metric
    by_class = best.startswith(f"{name}/") and best.endswith("/mean_per_class")
    if by_class and np.ndim(pipeline.read(source, 0)["label"]):
        raise UserError(
            f"config.checkpoint.best_metric={best!r}: its images have sets of labels, which have "
            "no accuracy by class; use top1"
        )
    if own:
        return sources.with_classes(source, train.classes, data.eval_split, say)
    sources.check_classes(source.classes, train.classes, data.eval_split)
    return source
