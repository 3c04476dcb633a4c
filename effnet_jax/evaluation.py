"""One evaluation for the training loop and for eval.py: exact over every record."""

import collections
import copy
import inspect
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import models, parallel
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import pipeline, sources
from effnet_jax.data.preprocess import normalize
from effnet_jax.data.sources import Source
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.metrics import mean_corruption_error, metric_sums
from effnet_jax.run import environment, files, writers
from effnet_jax.run.processes import ALONE, Alone

PyTree = Any
Metrics = dict[str, float | int]


def make_eval_step(
    model: nn.Module, preprocess: ConfigDict, choices: np.ndarray | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """`(params, batch_stats, batch) -> sums`, those of `metrics.metric_sums`."""

    def eval_step(params: PyTree, batch_stats: PyTree, batch: dict[str, jax.Array]):
        images = normalize(batch["image"], preprocess.mean, preprocess.std)
        logits, _ = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        return metric_sums(logits, batch["label"], batch["mask"], choices)

    return eval_step


def choose_classes(
    names: Sequence[str], classes: tuple[str, ...], outputs: int | None
) -> np.ndarray | None:
    """Which of a model's outputs are among the classes named.

    Args:
      names: `config.data.eval_classes`; none are all.
      classes: of the data, by label.
      outputs: of the model; None: as many as there are classes.

    Returns:
      bool [outputs], or None for all.
    """
    if not names:
        return None
    if missing := sorted(set(names) - set(classes)):
        raise UserError(
            f"config.data.eval_classes names {len(missing)} classes that are none of the data's "
            f"{len(classes)}: {', '.join(missing[:5])}"
        )
    chosen = np.zeros(outputs or len(classes), bool)
    chosen[[classes.index(name) for name in names]] = True
    return chosen


class Evaluator:
    """Evaluates weights on one split, as often as wanted, with one compilation."""

    def __init__(
        self,
        model: nn.Module,
        config: ConfigDict,
        source: Source,
        mesh: Mesh,
        processes: Alone = ALONE,
    ):
        parallel.check_batch("eval_batch_size", config.eval_batch_size, mesh.size)
        self._config = config
        self._resolution = model.architecture.resolution
        self._mesh, self._processes = mesh, processes
        choices = choose_classes(config.data.eval_classes, source.classes, config.model.num_classes)
        self._step = jax.jit(
            make_eval_step(model, config.preprocess, choices),
            out_shardings=parallel.replicated(mesh),
        )
        self._read(source)

    def _read(self, source: Source) -> None:
        self._examples = len(source)
        parallel.check_processes(len(source), "evaluation")
        place = jax.process_index(), jax.process_count()
        self._batches = pipeline.eval_batches(source, self._config, self._resolution, *place)

    def on(self, source: Source) -> "Evaluator":
        """The same evaluation of another split with the same classes, not compiled again."""
        other = copy.copy(self)
        other._read(source)
        return other

    def __call__(
        self,
        params: PyTree,
        batch_stats: PyTree,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Metrics:
        """Top-1 and top-5 as fractions, mean cross-entropy (no smoothing), and the count.

        Where images have sets of labels there is no cross-entropy, and the count is of those that
        have any.

        Args:
          params, batch_stats: the weights.
          should_stop: asked at every batch; Interrupted is raised where it says so.
        """
        # A sharded state's are put together once, not for every batch.
        weights = jax.device_put((params, batch_stats), parallel.replicated(self._mesh))
        totals = collections.defaultdict(float)
        ahead = self._batches.read_ahead(self._config.data)
        for number, batch in enumerate(ahead):
            self._processes.at("evaluation" if number else "compile", number)
            if should_stop():
                raise Interrupted("the evaluation was stopped")
            sums = self._step(*weights, parallel.put_batch(batch, self._mesh))
            for key, value in jax.device_get(sums).items():
                totals[key] += float(np.asarray(value, np.float64))
        images, count = round(totals["images"]), round(totals["count"])
        if images != self._examples:
            raise AssertionError(f"evaluated {images} of {self._examples} images")
        if not count:
            raise UserError(f"none of the {images} images has a label")
        means = {key: totals[key] / count for key in ("top1", "top5", "loss") if key in totals}
        return {**means, "count": count}


def load_evaluation_set(name: str) -> ConfigDict:
    """A file of configs/evaluation: "NAME", "NAME:ARGUMENT" or "FILE.py:ARGUMENT"."""
    name, _, argument = name.partition(":")
    get_config = config_lib.find("evaluation", "evaluation set", name, "get_config")
    if argument and not inspect.signature(get_config).parameters:
        raise UserError(f"evaluation set {name!r} takes no argument; got {argument!r}")
    return get_config(*filter(None, [argument]))


def open_sources(config: ConfigDict, parts: Sequence[str]) -> dict[str, Source]:
    """The evaluation splits of a data set, by TFDS name.

    Args:
      config: `config.data`.
      parts: TFDS configs of `config.name`; none: the data set itself.

    Raises:
      UserError: names all that can't be read, and how the first is mended.
    """
    found, errors = {}, {}
    for name in [f"{config.name}/{part}" for part in parts] or [config.name]:
        config = config.copy_and_resolve_references()
        config.name = name
        try:
            found[name] = sources.open_source(config, config.eval_split)
        except UserError as error:
            errors[name] = error
    if len(errors) > 1:
        name, error = next(iter(errors.items()))
        raise UserError(
            f"{len(errors)} of {len(parts)} data sets can't be read: {', '.join(errors)}. "
            f"The first: {error}\nWithout '/{name.rpartition('/')[2]}' it prepares all of them."
        )
    for error in errors.values():
        raise error
    return found


class Subject(NamedTuple):
    """What is evaluated, before anything big is read.

    Attributes:
      config: whole; its `preprocess` is the one that the weights belong to.
      classes: of the network's outputs.
      asked: which weights, in the command line's words; the same on all hosts.
      restore: `(model, mesh) -> (variables, run)`: params and batch_stats, and what the result says
        of where they are from.
    """

    config: ConfigDict
    classes: tuple[str, ...]
    asked: dict[str, Any]
    restore: Callable[[nn.Module, Mesh], tuple[dict[str, PyTree], dict[str, Any]]]


def checkpoint_of(workdir: str, step: int | None = None, weights: str = "ema") -> Subject:
    """A checkpoint of a run, as the run's own config describes it.

    Args:
      workdir: of the run; its config is in it.
      step: which checkpoint; by default the newest that can be read.
      weights: "ema" or "raw".
    """
    config = config_lib.load(workdir)

    def restore(model: nn.Module, mesh: Mesh):
        resolution = model.architecture.resolution
        shapes = jax.eval_shape(lambda: models.init_variables(model, resolution, jax.random.key(0)))
        shapes = {key: shapes[key] for key in ("params", "batch_stats")}
        wanted = {"step": jax.ShapeDtypeStruct((), np.int32), **shapes, "ema": shapes}
        with Checkpoints(workdir, config.checkpoint, read_only=True) as checkpoints:
            state = checkpoints.restore(wanted, parallel.replicated(mesh), step)
        if state is None:
            raise UserError(f"no checkpoint in {workdir} yet")
        chosen = state["ema"] if weights == "ema" else state
        return chosen, {"step": int(state["step"]), "weights": weights}

    asked = {"--step": step, "--weights": weights}
    return Subject(config, files.read_classes(workdir), asked, restore)


def weights_of(source: str, data_dir: str | None = None, **described: str | None) -> Subject:
    """Weights from a file or a hub, with the preprocessing and the classes that they come with.

    Args:
      source: as for `weights.load`.
      data_dir: an image folder, DIR/val/CLASS or DIR/CLASS, for where no other data is asked for.
      **described: what a source doesn't say itself: model, origin or classes of `weights.load`.
    """
    from effnet_jax import config as default
    from effnet_jax import weights

    loaded = weights.load(source, **described)
    config = default.get_config().unlock()
    config.model = loaded.config.copy_and_resolve_references()
    for key in loaded.preprocess.keys() & config.preprocess.keys():  # Resolution is the model's.
        config.preprocess[key] = loaded.preprocess[key]
    config.eval_batch_size = 32 * jax.device_count()
    if data_dir is not None:
        root = pathlib.Path(data_dir)
        split = "val" if (root / "val").is_dir() else "."
        config.data.update(source="folder", name=root.resolve().name, eval_split=split)
    return Subject(
        config,
        loaded.classes,
        {"--weights": source, **described},
        lambda *_: (loaded.variables, {"step": None, "weights": source}),
    )


def evaluate(
    subject: Subject,
    data_dir: str | None = None,
    csv: str | None = None,
    data: str | None = None,
    processes: Alone = ALONE,
) -> dict[str, Any]:
    """Evaluates weights on the evaluation split of their config, or on another set.

    Args:
      subject: what is evaluated.
      data_dir: where the data is, if not where the config says.
      csv: a file under results/ to add a row to: the result, the model, the run and the machine. A
        set of corruptions adds one for each corruption and severity.
      data: an evaluation set, as for `load_evaluation_set`. Its classes have to be among the
        network's, by name.

    Returns:
      top1, top5, loss, count, step, weights; without the loss where images have sets of labels. Of
      a set of corruptions: mce, top1 and error (both means; the error by corruption), count, step,
      weights.
    """
    config = subject.config.copy_and_resolve_references()
    corruptions, severities = {}, ()
    if data is not None:
        chosen = load_evaluation_set(data)
        if chosen.data.data_dir is None and chosen.data.source == config.data.source:
            chosen.data.data_dir = config.data.data_dir
        config.data = chosen.data
        config.preprocess.update(chosen.preprocess)
        corruptions, severities = chosen.corruptions, chosen.severities
    if data_dir is not None:
        config.data.data_dir = data_dir
    processes.watch(config.processes)
    mesh = parallel.data_mesh()
    name, split = config.data.name, config.data.eval_split
    parts = [f"{corruption}_{level}" for corruption in corruptions for level in severities]
    found = open_sources(config.data, parts)
    for part, source in found.items():
        found[part] = sources.with_classes(source, subject.classes, split, writers.say)
    model = models.build(config.model)
    evaluator = Evaluator(model, config, next(iter(found.values())), mesh, processes)

    processes.check_same(
        "start",
        lambda: (
            environment.start_facts(
                config, {name: sources.fingerprint(source) for name, source in found.items()}
            )
            | subject.asked
        ),
        config.processes.start_seconds,
    )
    variables, run = subject.restore(model, mesh)
    processes.check_same("restored", lambda: run, config.processes.start_seconds)

    results = {}
    for part in list(found):
        # Taken out, so that its files are closed when it is done: all sets together may have more
        # than a process may open.
        here = evaluator.on(found.pop(part))
        results[part] = {**here(variables["params"], variables["batch_stats"]), **run}
        if parts:
            writers.say(f"{part}: top-1 {results[part]['top1']:.2%}")
        if csv is not None and processes.is_first:
            size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
            row = _row(config, f"{part}/{split}", size, results[part])
            files.append_csv(pathlib.Path(csv), [row])
    if not parts:
        return results[name]
    errors = {
        corruption: [1 - results[f"{name}/{corruption}_{level}"]["top1"] for level in severities]
        for corruption in corruptions
    }
    return {
        "mce": mean_corruption_error(errors, corruptions),
        "top1": statistics.fmean(result["top1"] for result in results.values()),
        "error": {corruption: statistics.fmean(errors[corruption]) for corruption in errors},
        "count": sum(result["count"] for result in results.values()),
        **run,
    }


def _row(config: ConfigDict, data: str, parameters: int, result: Metrics) -> dict[str, Any]:
    """A row of results: the data, the network, the run, the result and the machine."""
    scaled = models.coefficients(config.model)
    # Of weights from elsewhere nobody knows how they were trained.
    training = config if result["step"] is not None else dict.fromkeys(config)
    return {
        "data": data,
        "phi": config.model.phi,
        "width": scaled.width,
        "depth": scaled.depth,
        "resolution": scaled.resolution,
        "parameters": parameters,
        "batch_size": training["batch_size"],
        "epochs": training["epochs"],
        "seed": training["seed"],
        # The same columns for every set of data.
        **{key: result.get(key) for key in ("top1", "top5", "loss", "count", "step", "weights")},
        **environment.describe_machine(),
    }
