"""Finds experiments by name: the files in configs/, and saved configs."""

import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.errors import UserError, check_choice
from effnet_jax.run import buckets


def read(experiment: str) -> ConfigDict:
    """Returns the config of an experiment, or a saved config.

    Args:
      experiment: NAME in configs/ or FILE.py, with an optional :ARGUMENT for its `get_config`; or
        FILE.json or a workdir, with an optional :MODEL that scales its base network, as in
        scaling.json:phi=2.
    """
    # A path can contain a colon, so the whole text is tried first.
    for name, _, argument in ((experiment, "", ""), experiment.rpartition(":")):
        if name.endswith(".json"):
            config = config_lib.load(name)
        else:
            config = config_lib.load_if_any(name) if name else None
        if config:
            return _rescale(config, argument) if argument else config
    if buckets.is_bucket(experiment):
        return config_lib.load(experiment)  # Raises.
    return get_config("", "config", experiment)


def get_config(folder: str, what: str, name: str) -> ConfigDict:
    """The config of NAME, NAME:ARGUMENT or FILE.py:ARGUMENT in configs/FOLDER; see `find`."""
    name, _, argument = name.partition(":")
    function = find(folder, what, name, "get_config")
    if argument and not inspect.signature(function).parameters:
        raise UserError(f"{what} {name!r} takes no argument; got {argument!r}")
    return function(argument) if argument else function()


def _rescale(config: ConfigDict, model: str) -> ConfigDict:
    """Scales the base network of a config to a model: a name, phi=2 or w=1.2,d=1.4,r=291."""
    chosen = models.parse_variant(model)
    if not re.match(r"(phi|[wdr])=", model) and chosen["base"] != config.model.base:
        raise UserError(f"{model} is not based on {config.model.base}, which this config scales")
    config.model.update({key: chosen[key] for key in ("phi", "width", "depth", "resolution")})
    return config


def experiments() -> list[pathlib.Path]:
    """The folders named configs that are searched: in the current directory and in the checkout."""
    checkout = pathlib.Path(__file__).resolve().parents[1]
    roots = [pathlib.Path.cwd(), *([checkout] if (checkout / "train.py").is_file() else [])]
    return [root / "configs" for root in roots if (root / "configs").is_dir()]


def find(folder: str, what: str, name: str, function: str) -> Callable[..., Any]:
    """Returns a function of the file configs/FOLDER/NAME.py, or of the file NAME if it is a path.

    Raises UserError if the file is missing, can't be loaded, or lacks the function. The message
    calls the file a `what`.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".py":
        roots = [root / folder for root in experiments()]
        known = {p.stem: p for root in reversed(roots) for p in root.glob("[!_]*.py")}
        if not known:
            raise UserError(
                f"no {what} {name!r}: the current directory has no folder configs/{folder}; give a "
                "file, NAME.py, or run in a checkout of effnet_jax"
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
