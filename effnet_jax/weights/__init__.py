"""Weights of ours and of others: `load` reads them, `save` writes them, all arrays accounted for.

Each outside format has one file here: how it calls a network's arrays, in which order their axes
are, and which preprocessing its weights go with.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as default
from effnet_jax import models
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.errors import UserError, check_choice
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.models.efficientnet import FAMILIES, VARIANTS
from effnet_jax.weights import files, keras, ours
from effnet_jax.weights import names as naming
from effnet_jax.weights.names import Array, Names, Shapes
from effnet_jax.weights.origins import NAMES, ORIGINS, choose, detect

Variables = dict[str, Any]
MOST = 8  # Names of a kind in a message.
OUT = ("ours", "timm")  # The names that are written.
CLASSIFIER = "params/classifier/bias"
# Outputs that a name for a set of classes can have; google/automl's heads for ImageNet-21k have the
# larger number.
OUTPUTS = {
    "imagenet": (1000, 1001),
    "imagenet_background": (1001,),
    "imagenet21k": (21841, 21843),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's weights, and all that belongs to them.

    Attributes:
      config: `config.model` of the network.
      preprocess: values of a `data.preprocess.Preprocess`.
      classes: names of the outputs.
      origin: whose weights they are, one of `origins.ORIGINS`.
      variables: "params" and "batch_stats", NumPy arrays in float32.
    """

    config: ConfigDict
    preprocess: dict[str, Any]
    classes: tuple[str, ...]
    origin: str
    variables: Variables


class Misfits(NamedTuple):
    """What keeps arrays from being a network's: names, in the format's terms."""

    missing: list[str]
    left_over: list[str]
    misshapen: list[str]

    def __str__(self) -> str:
        lines = []
        for kind, found in zip(("missing", "left over", "of another shape"), self, strict=True):
            lines += [f"  {kind}: {name}" for name in found[:MOST]]
            if len(found) > MOST:
                lines.append(f"  ... and {len(found) - MOST} more {kind}")
        return "\n".join(lines)


def find_misfits(wanted: Sequence[Array], names: Names, shapes: Shapes) -> Misfits:
    """Compares a network's arrays with those that are there, by the format's names.

    The number of classes is whatever the classifier's bias has.
    """
    expected = {names.of(array): names.shape(array) for array in wanted}
    other = [
        f"{name} (there {_text(shapes[name])}, in the model {_text(shape)})"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    return Misfits(
        [name for name in expected if name not in shapes],
        sorted(set(shapes) - set(expected)),
        other,
    )


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _outputs(names: Names, shapes: Shapes) -> int:
    """How many classes a source's classifier has; 1000 where it can't be told."""
    bias = next(
        array
        for array in naming.arrays(models.architecture(ours.config_of("b0")))
        if array.name == CLASSIFIER
    )
    shape = shapes.get(names.of(bias), ())
    return shape[0] if len(shape) == 1 else 1000


def _config(
    model: str | None, stated: ConfigDict | None, names: Names, shapes: Shapes, where: str
) -> tuple[str, ConfigDict, list[Array]]:
    """The model's name, its config and its arrays, of which none is missing or left over.

    Args:
      model: its name, if the person or the source said it.
      stated: `config.model`, if the source has it.
      names, shapes: of the source.
      where: the source, for messages.
    """
    outputs = _outputs(names, shapes)

    def attempt(config: ConfigDict) -> tuple[list[Array], Misfits]:
        with config.unlocked():
            config.num_classes = outputs
        wanted = naming.arrays(models.architecture(config))
        return wanted, find_misfits(wanted, names, shapes)

    said = [(stated, "the model in its metadata")] if stated is not None else []
    if model is not None:
        said.append((ours.config_of(model), model))
    if not said:
        tried = {}
        for name in VARIANTS:
            config = ours.config_of(name)
            tried[name] = (config, *attempt(config))
            if not any(tried[name][-1]):
                break
        model = min(tried, key=lambda name: sum(map(len, tried[name][-1])))
        config, wanted, misfits = tried[model]
        if any(misfits):
            raise UserError(
                f"{where} fits no model that is known; the closest is {model}:\n{misfits}"
            )
        return model, config, wanted
    for config, what in said:
        wanted, misfits = attempt(config)
        if any(misfits):
            raise UserError(f"{where} doesn't fit {what}:\n{misfits}")
    return model or "", said[0][0], wanted


def _name_classes(
    classes: str | Sequence[str] | None, outputs: int, where: str
) -> tuple[tuple[str, ...], bool]:
    """The names of the outputs that are kept, and whether the first is dropped.

    Args:
      classes: the names; or what they are: a key of OUTPUTS, or a file of names, JSON or lines.
      outputs: how many the classifier has.
      where: the source, for messages.
    """
    numbered = tuple(f"class {number}" for number in range(outputs))
    if classes is None:
        return numbered, False
    if not isinstance(classes, str):
        names = tuple(classes)
    elif classes in OUTPUTS:
        if outputs not in OUTPUTS[classes]:
            known = " or ".join(map(str, OUTPUTS[classes]))
            raise UserError(f"{where} has {outputs} outputs, and classes {classes!r} are {known}")
        if classes == "imagenet21k":
            return numbered, False
        if classes == "imagenet":
            return imagenet.class_names(), outputs == 1001
        names = ("background", *imagenet.class_names())
    else:
        names = _read_classes(pathlib.Path(classes).expanduser())
    if len(names) != outputs:
        raise UserError(f"{where} has {outputs} outputs, and {len(names)} classes were given")
    return names, False


def _read_classes(path: pathlib.Path) -> tuple[str, ...]:
    try:
        text = path.read_text()
        return tuple(json.loads(text) if text.startswith("[") else text.splitlines())
    except (OSError, ValueError) as error:
        raise UserError(
            f"can't read the names of the classes from {path}: {error}. Give a file with one a "
            f"line, or one of: {', '.join(OUTPUTS)}"
        ) from None


def load(
    source: str | pathlib.Path,
    model: str | None = None,
    origin: str | None = None,
    classes: str | Sequence[str] | None = None,
    weights: str = "ema",
    normalization: str | None = None,
    resolution: int | None = None,
) -> Weights:
    """Reads weights of any origin; nothing that is in a file is run.

    Args:
      source: as for `files.open_source`.
      model: its name, where neither the source's metadata nor its shapes shall tell.
      origin: one of `origins.ORIGINS`; needed where names and metadata leave it open.
      classes: names of the outputs; or "imagenet" (the first of 1001 outputs, for background, is
        dropped), "imagenet_background" (it is kept), "imagenet21k", or a file of names. None: as
        the source says, else "class 0" and so on.
      weights: "ema" or "raw", for a training program's checkpoint that has both.
      normalization: in place of the origin's, one of `configs.default.NORMALIZATIONS`; weights of
        AdvProp have "inception".
      resolution: in place of the model's own, in pixels.

    Raises:
      UserError: the source can't be read, or an array is missing, left over or of another shape.
    """
    check_choice("weights", weights, ("ema", "raw"))
    content = files.open_source(source, weights)
    facts, where = content.facts, str(source)
    key = detect(content.shapes, where)
    names = NAMES[key]
    if facts.config is not None and origin not in (None, facts.origin):
        raise UserError(f"{where} says itself that its origin is {facts.origin}, not {origin}")
    origin = choose(key, origin, facts.origin, where)
    places = names.clean(content.shapes, weights)
    shapes = {name: content.shapes[place] for name, place in places.items()}
    is_said = model is not None or facts.config is not None
    model, config, wanted = _config(model or facts.model, facts.config, names, shapes, where)
    if key == "ours" and not is_said:
        raise UserError(
            f"{where} has our names and not the metadata that `save` writes: how its images are "
            f"prepared can't be known. --model={model} takes that model's own preprocessing"
        )
    arrays = {}
    for array in wanted:
        value = np.asarray(content.read(places[names.of(array)]), np.float32)
        arrays[array.name] = np.ascontiguousarray(names.ours(array, value))

    if facts.config is None:
        if origin != "ours" and model not in VARIANTS:
            raise UserError(f"origin {origin} has published models alone, and {model} is none")
        settings = ORIGINS[origin]
        config.padding, config.batch_norm_epsilon = settings.padding, settings.epsilon(model)
        preprocess = Preprocess.from_config(
            default.get_config(model).preprocess, models.coefficients(config).resolution
        ).to_dict()
        preprocess |= facts.preprocess or settings.preprocess(model)
        if key == "keras":
            preprocess |= keras.normalization(content.shapes, content.read)
    else:
        preprocess = dict(facts.preprocess)
    if normalization is not None:
        check_choice("normalization", normalization, default.NORMALIZATIONS)
        preprocess["mean"], preprocess["std"] = default.NORMALIZATIONS[normalization]
    if resolution is not None:
        preprocess["resolution"] = resolution
    preprocess = Preprocess(**preprocess).to_dict()

    if classes is None:
        classes = facts.classes
    named, drops = _name_classes(classes, config.num_classes, where)
    if drops:
        for name in ("params/classifier/kernel", CLASSIFIER):
            arrays[name] = np.ascontiguousarray(arrays[name][..., 1:])
    with config.unlocked():
        config.num_classes = len(named)
        if preprocess["resolution"] != models.coefficients(config).resolution:
            config.resolution = preprocess["resolution"]
    return Weights(config.lock(), preprocess, named, origin, _nest(arrays))


def _nest(arrays: dict[str, np.ndarray]) -> Variables:
    """Arrays by slash-joined name as the tree that they name."""
    tree: Variables = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        here = tree
        for part in path:
            here = here.setdefault(part, {})
        here[leaf] = array
    return tree


def save(
    path: str | pathlib.Path, weights: Weights, names: str = "ours", overwrite: bool = False
) -> None:
    """Writes weights as .safetensors, with all that belongs to them as metadata.

    Args:
      path: of the file; its folder is made.
      weights: what to write.
      names: "ours", slash-joined; or "timm", with its order of axes, for `load_state_dict`.
      overwrite: whether a file that is there may be replaced.

    Raises:
      UserError: there is a file, it can't be written, or timm has no names for the network.
    """
    import safetensors.numpy

    check_choice("names", names, OUT)
    path = pathlib.Path(path).expanduser()
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; --overwrite replaces it")
    if names == "timm" and weights.config.base not in FAMILIES:
        raise UserError(
            f"timm's names are written of EfficientNets alone, not {weights.config.base}"
        )
    arrays = {}
    for array in naming.arrays(models.architecture(weights.config)):
        value: Any = weights.variables
        for part in array.name.split("/"):
            value = value[part]
        value = NAMES[names].theirs(array, np.asarray(value))
        arrays[NAMES[names].of(array)] = np.ascontiguousarray(value)
    metadata = ours.to_metadata(weights.config, weights.preprocess, weights.classes, weights.origin)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(arrays, temporary, metadata)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
