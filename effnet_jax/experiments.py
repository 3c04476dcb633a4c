"""Experiments by name: the files of configs/, wherever they are, and configs that were saved."""

import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.errors import UserError, check_choice


def read(experiment: str) -> ConfigDict:
    """The config of an experiment, or one that was saved.

    Args:
      experiment: NAME (of configs/) or FILE.py, with :ARGUMENT for its `get_config`; FILE.json or
        a workdir, with :MODEL to scale the base network in it, as in scaling.json:phi=2.
    """
    name, _, argument = experiment.partition(":")
    path = pathlib.Path(name).expanduser()
    if path.suffix == ".json" or (path / config_lib.FILE).is_file():
        return rescale(config_lib.load(path), argument) if argument else config_lib.load(path)
    function = find("", "config", name, "get_config")
    return function(argument) if argument else function()


def rescale(config: ConfigDict, model: str) -> ConfigDict:
    """The config with another scale of its own base network: a model's name, phi=2 or w=1.2,..."""
    chosen = models.parse_variant(model)
    if not re.match(r"(phi|[wdr])=", model) and chosen["base"] != config.model.base:
        raise UserError(f"{model} is no {config.model.base}, which this config scales")
    config.model.update({key: chosen[key] for key in ("phi", "width", "depth", "resolution")})
    return config


def experiments() -> list[pathlib.Path]:
    """Folders called configs where experiments are looked for by name: here, and in a checkout."""
    checkout = pathlib.Path(__file__).resolve().parents[1]
    roots = [pathlib.Path.cwd(), *([checkout] if (checkout / "train.py").is_file() else [])]
    return [root / "configs" for root in roots if (root / "configs").is_dir()]


def find(folder: str, what: str, name: str, function: str) -> Callable[..., Any]:
    """`function` of the file configs/FOLDER/NAME.py, or of the file NAME where that ends in .py.

    Args:
      folder: under configs/; its files are the choices.
      what: the kind of thing, for messages.
      name: as on the command line.
      function: its name.

    Raises:
      UserError: there is no such file, it doesn't load, or it lacks the function.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".py":
        roots = [root / folder for root in experiments()]
        known = {p.stem: p for root in reversed(roots) for p in root.glob("[!_]*.py")}
        if not known:
            raise UserError(
                f"no {what} {name!r}: there is no folder configs/{folder} here; give a file, "
                "NAME.py, or run in a checkout of effnet_jax"
            )
        path = known[check_choice(what, name, known)]
    elif not path.is_file():
        raise UserError(f"no {what} file {path}")
    spec = importlib.util.spec_from_file_location(f"{folder}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"can't load {what} file {path}: {error}") from None
    if not hasattr(module, function):
        raise UserError(f"{what} file {path} needs a function {function}")
    return getattr(module, function)


def evaluation_set(name: str, split: str) -> ConfigDict:
    """All keys of an evaluation set, a file of configs/evaluation, with the usual values.

    Args:
      name, split: of the data set in TFDS.
    """
    config = ConfigDict()
    config.data = config_lib.get_config().data  # Replaces the run's.
    config.data.update(name=name, eval_split=split)
    config.preprocess = ConfigDict()  # What differs from the weights' own preprocessing.
    # For a set of many, data.name/CORRUPTION_SEVERITY: the reference's error by corruption.
    config.corruptions, config.severities = ConfigDict(), ()
    return config


def load_evaluation_set(name: str) -> ConfigDict:
    """A file of configs/evaluation: "NAME", "NAME:ARGUMENT" or "FILE.py:ARGUMENT"."""
    name, _, argument = name.partition(":")
    make = find("evaluation", "evaluation set", name, "get_config")
    if argument and not inspect.signature(make).parameters:
        raise UserError(f"evaluation set {name!r} takes no argument; got {argument!r}")
    return make(*filter(None, [argument]))


def choose_data(
    weights: Any, run: ConfigDict | None, data: str | None = None, data_dir: str | None = None
) -> ConfigDict:
    """A whole config for `evaluate`.

    Args:
      weights: as for `evaluate`; their model and preprocessing go into the config.
      run: config of the run that trained them; None: unknown.
      data: name for `load_evaluation_set`; None: the run's own split, or without a run a
        folder of images, DIR/val/CLASS or DIR/CLASS.
      data_dir: the folder, or where the data is if not where its config says.
    """
    config = (run or config_lib.get_config()).copy_and_resolve_references().unlock()
    config.model = weights.config.copy_and_resolve_references()
    for key in weights.preprocess.keys() & config.preprocess.keys():  # Resolution is the model's.
        config.preprocess[key] = weights.preprocess[key]
    config.corruptions, config.severities = ConfigDict(), ()
    if run is None:
        config.eval_batch_size = 32 * jax.device_count()
    if data is not None:
        chosen = load_evaluation_set(data)
        if chosen.data.data_dir is None and chosen.data.source == config.data.source:
            chosen.data.data_dir = config.data.data_dir
        config.preprocess.update(chosen.preprocess)
        for key in ("data", "corruptions", "severities"):
            config[key] = chosen[key]
    elif run is None:
        root = pathlib.Path(data_dir).resolve()
        split = "val" if (root / "val").is_dir() else "."
        config.data.update(source="folder", name=root.name, eval_split=split)
    if data_dir is not None:
        config.data.data_dir = data_dir
    return config
