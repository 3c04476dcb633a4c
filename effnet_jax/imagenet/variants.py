"""Sets that eval.py evaluates finished weights on, by name: ImageNet-V2, -A, -R, -C and others.

Evaluations during training are `config.evaluations`.
"""

import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import csv_rows, experiments, models
from effnet_jax.data import sources
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError
from effnet_jax.evaluation import Details, Metrics, evaluate
from effnet_jax.imagenet import folders
from effnet_jax.run import writers
from effnet_jax.run.processes import ALONE, Alone

RESULT = ("top1", "top5", "loss", "mean_per_class", "count", "step", "weights")  # In a row.


def evaluation_set(name: str, split: str, images: int | None = None) -> ConfigDict:
    """All keys of an evaluation set, with the usual values, for a split of a data set in TFDS.

    Where it has other than `images`, or each set of many has, this is reported.
    """
    config = ConfigDict()
    config.data = config_lib.get_config().data  # Replaces the run's.
    config.data.update(name=name, eval_split=split)
    config.preprocess = ConfigDict()  # What differs from the weights' own preprocessing.
    # For a set of many, data.name/CORRUPTION_SEVERITY: the reference's error by corruption.
    config.corruptions, config.severities, config.images = ConfigDict(), (), images or 0
    return config


def load_evaluation_set(name: str) -> ConfigDict:
    """A file of configs/evaluation: "NAME", "NAME:ARGUMENT" or "FILE.py:ARGUMENT"."""
    config = experiments.get_config("evaluation", "evaluation set", name)
    wanted = evaluation_set("", "")
    is_whole = isinstance(config, ConfigDict) and {*wanted} <= {*config}
    if not is_whole or not {*wanted.data} <= {*config.data}:
        raise UserError(
            f"evaluation set {name!r}: its get_config has to return evaluation_set(NAME, SPLIT) of "
            "effnet_jax.imagenet.variants, with any changes"
        )
    return config


def choose_data(
    weights: Any,
    run: ConfigDict | None,
    data: str | None = None,
    data_dir: str | None = None,
    trained: str | None = None,
) -> ConfigDict:
    """A whole config for `evaluate_set`.

    Args:
      weights: as for `evaluate_set`; their model and preprocessing go into the config.
      run: config of the run that trained them; None: unknown.
      data: name for `load_evaluation_set`; None: the run's own split, or without a run a
        folder of images, DIR/val/CLASS or DIR/CLASS. A folder that is not the run's is taken
        whole: nothing in it is held out for training.
      data_dir: the folder, or where the data is if not where its config says.
      trained: what `sources.identity` was of the run's training data; None: unknown.
    """
    config = (run or config_lib.get_config()).copy_and_resolve_references().unlock()
    config.model = weights.config.copy_and_resolve_references()
    for key in weights.preprocess.keys() & config.preprocess.keys():  # Resolution is the model's.
        config.preprocess[key] = weights.preprocess[key]
    config.corruptions, config.severities, config.images = ConfigDict(), (), 0
    config.training_data = config.data.copy_and_resolve_references() if run else ConfigDict()
    config.trained = trained or ""
    if run is None:
        config.eval_batch_size = 32 * jax.device_count()
    if data is not None:
        chosen = load_evaluation_set(data)
        if chosen.data.data_dir is None and chosen.data.source == config.data.source:
            chosen.data.data_dir = config.data.data_dir
        config.preprocess.update(chosen.preprocess)
        for key in ("data", "corruptions", "severities", "images"):
            config[key] = chosen[key]
    elif run is None:
        config.data.update(source="folder", eval_split="val", exif="apply")
    if data_dir is not None:
        config.data.data_dir = data_dir
        if data is None and config.data.source == "folder":
            config.data.name = pathlib.Path(data_dir).resolve().name
    config.data.eval_split = sources.eval_split(config.data, run and run.data.data_dir)
    return config


def open_source(data: ConfigDict, split: str | None = None) -> Source:
    """A split, by default `data.eval_split`, as TFDS prepared it or the set's authors ship it."""
    split = split or data.eval_split
    prepared = pathlib.Path(data.data_dir or "").expanduser() / data.name
    if data.source != "tfds" or not data.data_dir or any(prepared.glob("*/dataset_info.json")):
        found = sources.open_source(data, split)
        if data.source == "folder" and not data.eval_classes:
            _name_set(set(found.classes))
        return found
    if split == data.eval_split and (found := folders.open_set(data)):
        return found
    try:
        return sources.open_source(data, split)
    except UserError as error:
        raise UserError(f"{error}\nor give --data_dir=FOLDER, as the authors ship it") from None


def _name_set(classes: set[str]) -> None:
    """Says so if classes are those of an evaluation set that chooses among them alone."""
    for name in ("imagenet_a", "imagenet_r") if len(classes) == 200 else ():
        if classes == set(load_evaluation_set(name).data.eval_classes):
            writers.say(f"these are the classes of {name}; --data={name} chooses among them alone")


def _open_sources(config: ConfigDict, names: Sequence[str]) -> dict[str, Source]:
    """The evaluation splits of data sets by name; one UserError for all that can't be read."""
    found, errors = {}, {}
    for name in names:
        data = config.data.copy_and_resolve_references()
        data.name = name
        try:
            found[name] = open_source(data)
            if config.images and len(found[name]) != config.images:
                writers.say(f"{name}: {len(found[name]):,} of {config.images:,} images")
        except UserError as error:
            errors[name] = error
    if not errors:
        return found
    name, error = next(iter(errors.items()))
    if len(errors) == 1:
        raise error
    raise UserError(
        f"{len(errors)} of {len(names)} data sets can't be read: {', '.join(errors)}. "
        f"The first: {error}\nWithout '/{name.rpartition('/')[2]}' it prepares all of them."
    )


def _count_trained_on(config: ConfigDict, found: dict[str, Source]) -> int:
    """The number of images that the run was trained on; says so if there are any.

    Also warns where other images than at the training are held out, so that nobody knows.
    """
    data, training, trained = config.data, config.training_data, None
    if training.source in ("folder", "split_files", "parquet", "webdataset"):
        with contextlib.suppress(UserError):  # The training data isn't here any more.
            trained = sources.open_source(training, training.train_split)
    counts = (sources.count_trained_on(each, data, training, trained) for each in found.values())
    count, first = sum(counts), next(iter(found.values()))
    if trained and config.trained and getattr(first, "is_held_out", False):
        before, now = config.trained, sources.identity(trained)
        if before != now:
            writers.say(
                f"warning: the training images in {data.data_dir} have changed since the run "
                f"(then {before}, now {now}), and with them which images are held out: the run may "
                "have been trained on some of these. Images that are added belong in a folder of "
                "their own, for --data_dir"
            )
    if count:
        images = sum(map(len, found.values()))
        split = f"config.data.train_split={training.train_split!r}"
        writers.say(
            f"warning: the run was trained on {count:,} of these {images:,} images, {split}"
        )
    return count


def evaluate_set(
    weights: Any,
    config: ConfigDict,
    label: str,
    csv: pathlib.Path | None = None,
    processes: Alone = ALONE,
    details: Details | None = None,
) -> dict[str, Any]:
    """Evaluates weights on a data set, or on a set of corruptions.

    Args:
      weights: as for `evaluation.evaluate`.
      config: from `choose_data`.
      label: of the weights in the result: ema, raw, or their file.
      csv: a file to add a row to, or a row for each corruption and severity.
      details: as for `evaluation.evaluate`.

    Returns RESULT (no loss and mean_per_class where images have sets of labels). For a set of
    corruptions: mce, top1 and error (both means; the error by corruption), count, step and
    weights. Where the run was trained on some of the images, also their number, trained_on.

    Raises csv_rows.NotWritten, which has the result, if `csv` lacks a row in the end; UserError
    before anything is evaluated if it has other columns, or can't be written.
    """
    name, split = config.data.name, config.data.eval_split
    parts = [f"{name}/{each}_{level}" for each in config.corruptions for level in config.severities]
    found = _open_sources(config, parts or [name])
    run, results, lost = {"step": weights.step, "weights": label}, {}, []
    identities = {part: sources.identity(source) for part, source in found.items()}
    if csv is not None and processes.is_first:
        csv_rows.check_append(csv, _row(config, "", "", weights, {}))
    if config.training_data and (trained_on := _count_trained_on(config, found)):
        run["trained_on"] = trained_on
    for part, result in evaluate(weights, config, found, label, processes, details):
        results[part] = result | run
        if parts:
            writers.say(f"{part}: top-1 {result['top1']:.2%}")
        if csv is not None and processes.is_first:
            row = _row(config, f"{part}/{split}", identities[part], weights, results[part])
            try:
                csv_rows.append_csv(csv, [row])
            except UserError as error:
                lost.append(str(error))
    result = _summary(config, results) | run if parts else results[name]
    if lost:
        raise csv_rows.NotWritten(f"{lost[0]} ({len(lost)} of {len(results)} rows)", result)
    return result


def _summary(config: ConfigDict, results: dict[str, Metrics]) -> dict[str, Any]:
    """The result of a set of corruptions, from those of its parts."""
    name = config.data.name
    errors = {
        each: [1 - results[f"{name}/{each}_{level}"]["top1"] for level in config.severities]
        for each in config.corruptions
    }
    return {
        "mce": mean_corruption_error(errors, config.corruptions),
        "top1": statistics.fmean(result["top1"] for result in results.values()),
        "error": {each: statistics.fmean(values) for each, values in errors.items()},
        "count": sum(result["count"] for result in results.values()),
    }


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], reference: Mapping[str, float]
) -> float:
    """mCE (arXiv 1903.12261): the mean over corruptions of top-1 error / the reference's error.

    `errors` has one for each severity; `reference` has the mean over severities. All are fractions.
    """
    return statistics.fmean(
        statistics.fmean(errors[corruption]) / reference[corruption] for corruption in reference
    )


def _row(
    config: ConfigDict, data: str, identity: str, weights: Any, result: Metrics
) -> dict[str, Any]:
    """A row of results: the data, the network, the run, the result and the machine."""
    # Nobody knows how weights from elsewhere were trained.
    training = config if weights.step is not None else dict.fromkeys(config)
    return {
        "data": data,
        "identity": identity,
        "phi": config.model.phi,
        **dataclasses.asdict(models.coefficients(config.model)),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"])),
        **{key: training[key] for key in ("batch_size", "epochs", "seed")},
        # The same columns for every data set.
        **{key: result.get(key) for key in RESULT},
        **csv_rows.describe_machine(),
    }
