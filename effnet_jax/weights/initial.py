"""The initial weights of a run, and the config values that depend on them: `config.init`."""

import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import models, weights
from effnet_jax.errors import UserError
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.run.writers import say
from effnet_jax.weights import Weights

# Keys of config.model that determine a network's arrays, and those that weights were trained with.
SHAPE = ("base", "phi", "alpha", "beta", "gamma", "base_width", "base_depth", "width", "depth")
SHAPE += ("base_resolution", "stem_stride")
SETTINGS = ("padding", "batch_norm_epsilon")
IMAGE = ("mean", "std", "interpolation", "crop_rule", "crop_padding", "crop_fraction")


def prepare(
    config: ConfigDict, workdir: str | pathlib.Path
) -> tuple[ConfigDict, Callable[[], Weights] | None]:
    """Returns the config of a run, adapted to `init.weights`, and a function that loads them.

    The function is None if `init.weights` is not set. A run that already exists in the workdir
    keeps its model and preprocessing, and its weights are loaded only if it has no checkpoint.
    Raises UserError if the weights can't be read or don't fit the experiment's model.
    """
    source, config = config.init.weights, config.copy_and_resolve_references()
    if source is None:
        return config, None
    config_lib.check_init(config)
    load = functools.cache(functools.partial(_load, config))
    run = config_lib.load_if_any(workdir)
    if run and run.init.weights == source:
        _copy(config, run.model.to_dict(), run.preprocess.to_dict())
        config.init.checksum = run.init.checksum
        return config, load
    loaded = load()
    _follow(config, loaded)
    config.init.checksum = checksum(loaded)
    return config, load


def _load(config: ConfigDict) -> Weights:
    init = config.init
    try:
        return weights.load(init.weights, None, init.origin, init.classes, weights=init.which)
    except UserError as error:
        raise UserError(f"config.init.weights={init.weights}: {error}") from None


def checksum(loaded: Weights) -> str:
    """Returns a digest of all arrays and their names."""
    digest = hashlib.sha256()
    for name, array in sorted(flax.traverse_util.flatten_dict(loaded.variables, sep="/").items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _name(model: ConfigDict) -> str | None:
    """Returns the name of the published model with this base, width and depth, or None."""
    scale = models.coefficients(model)
    for name in VARIANTS:
        known = config_lib.get_config(name).model
        other = models.coefficients(known)
        if known.base == model.base and (other.width, other.depth) == (scale.width, scale.depth):
            return name
    return None


def _follow(config: ConfigDict, loaded: Weights) -> None:
    """Sets the config values that depend on the weights, and logs them."""
    own, theirs, defaults = config.model, loaded.config, config_lib.get_config("phi=0")
    if config.init.model == "weights":
        chosen = [key for key in SHAPE if own[key] != defaults.model[key]]
        if chosen:
            raise UserError(
                f"config.init.model='weights' takes the network from {config.init.weights}, but "
                f"config.model.{chosen[0]} is set too; remove one of them"
            )
        resolution = own.resolution or loaded.preprocess["resolution"]
        own.update({key: theirs[key] for key in SHAPE} | {"resolution": resolution})
        if own.dropout is None:
            own.dropout = theirs.dropout
    else:
        _check_shape(config, loaded)
    own.update({key: theirs[key] for key in SETTINGS})
    kept = []
    if config.init.preprocess == "weights":
        base = config_lib.NORMALIZATIONS[models.base(own.base).normalization]
        usual = defaults.preprocess.to_dict() | dict(zip(("mean", "std"), base, strict=True))
        for key in IMAGE:
            if config.preprocess[key] in (usual[key], defaults.preprocess[key]):
                config.preprocess[key] = _as(config.preprocess[key], loaded.preprocess[key])
            elif config.preprocess[key] != loaded.preprocess[key]:
                kept.append(f"{key}={config.preprocess[key]}")
    _say(config, loaded, kept)


def _as(like: Any, value: Any) -> Any:
    return tuple(value) if isinstance(like, tuple) else value


def _check_shape(config: ConfigDict, loaded: Weights) -> None:
    ours, theirs = (
        models.architecture(_with_classes(each)) for each in (config.model, loaded.config)
    )
    same = (ours.stem, ours.stages, ours.head_filters) == (
        theirs.stem,
        theirs.stages,
        theirs.head_filters,
    )
    if not same:
        scale, name = models.coefficients(loaded.config), _name(loaded.config)
        known = f"{name}, " if name else ""
        text = f"w={scale.width:g},d={scale.depth:g},r={scale.resolution}"
        raise UserError(
            f"config.init.weights={config.init.weights} has the weights of another model: {known}"
            f"{loaded.config.base} with {text}. Give --config=EXPERIMENT:{name or text}, or "
            "--config.init.model=weights if the experiment does not choose the model"
        )


def _with_classes(model: ConfigDict) -> ConfigDict:
    model = model.copy_and_resolve_references().unlock()
    model.num_classes, model.survival_probability = 1, 1.0
    return model


def _say(config: ConfigDict, loaded: Weights, kept: list[str]) -> None:
    is_own = config.init.preprocess == "own"
    whose = "the experiment's" if is_own else "that of the weights"
    but = f", except for {', '.join(kept)}, which the experiment sets" if kept else ""
    values = ", ".join(f"{key} {config.preprocess[key]}" for key in IMAGE[2:4])
    mean = ", ".join(f"{value:.3g}" for value in config.preprocess.mean)
    say(f"preprocessing is {whose}{but}: {values}, mean {mean}")
    if (size := models.coefficients(config.model).resolution) != loaded.preprocess["resolution"]:
        say(f"images have {size} px; the weights are for {loaded.preprocess['resolution']} px")


def _copy(config: ConfigDict, model: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """Copies the values that were set from the weights when the run started."""
    for section, values, keys in (
        (config.model, model, (*SHAPE, "resolution", "dropout", *SETTINGS)),
        (config.preprocess, preprocess, IMAGE),
    ):
        section.update({key: _as(section[key], values[key]) for key in keys})
