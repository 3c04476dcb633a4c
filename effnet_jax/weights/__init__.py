"""Reads and writes weights in our own and in other formats; every array is checked.

Each outside format has one file in this package. It defines the format's names for a network's
arrays, the order of their axes, and the preprocessing of the weights.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as default
from effnet_jax import models
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.errors import UserError, check_choice
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.models.efficientnet import FAMILIES, VARIANTS
from effnet_jax.run.files import check_local
from effnet_jax.weights import files, keras, ours, timm
from effnet_jax.weights.files import Arrays
from effnet_jax.weights.names import CLASSIFIER_BIAS, OUTPUTS, Array, Names, list_arrays, unwrap
from effnet_jax.weights.origins import NAMES, ORIGINS, choose, detect

MOST = 8  # Arrays of a kind that a message lists.
MATCH = (0, "")  # No mismatches.
WRITTEN = ("ours", "timm")  # Names that `save` writes.


@dataclasses.dataclass(frozen=True, repr=False)
class Weights:
    """The weights of a network, with its config, preprocessing and classes.

    Attributes:
      config: `config.model` of the network.
      variables: "params" and "batch_stats", NumPy arrays in float32.
      preprocess: values of a `data.preprocess.Preprocess`.
      classes: names of the outputs.
      origin: where the weights come from, one of `origins.ORIGINS`.
      step: step of the run's checkpoint; None for other weights.

    Raises UserError if these are inconsistent. `save` checks again, because dicts can be changed.
    """

    config: ConfigDict
    variables: dict[str, Any]
    preprocess: dict[str, Any]
    classes: tuple[str, ...]
    origin: str
    step: int | None = None

    def __post_init__(self):
        if not isinstance(self.classes, str | None):
            object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "preprocess", _complete(self.preprocess))
        self.check()

    def replace(self, **changes: Any) -> "Weights":
        """Returns a copy with other attributes, as in `weights.replace(classes=["cat", "dog"])`.

        Variables may be JAX arrays. The config gets the number of classes and the resolution of
        `preprocess`; if the number of classes changes, the variables must have as many outputs.
        """
        config = changes.get("config", self.config).copy_and_resolve_references()
        preprocess = _complete(changes.get("preprocess", self.preprocess))
        _settle(config, len(changes.get("classes") or self.classes), preprocess)
        if "variables" in changes:
            as_array = functools.partial(np.asarray, dtype=np.float32)
            changes["variables"] = jax.tree.map(as_array, changes["variables"])
        return dataclasses.replace(self, **changes | {"config": config, "preprocess": preprocess})

    def check(self) -> None:
        """Raises UserError if the attributes are inconsistent."""
        outputs, names = self.config.num_classes, self.classes
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(f"classes must be a list of names, not {names!r:.60}")
        if "" in names:
            raise UserError(
                f"class {names.index('')} of {len(names)} has an empty name; give names for all of "
                "them (--classes)"
            )
        flat = flax.traverse_util.flatten_dict(self.variables, sep="/")
        wanted = list_arrays(models.architecture(self.config))
        if (wrong := find_mismatches(wanted, NAMES["ours"], flat)) != MATCH:
            raise UserError(f"the variables don't fit the config of these weights:\n{wrong[1]}")
        if len(names) != outputs:
            raise UserError(f"the network has {outputs} outputs, but {len(names)} class names")
        _complete(self.preprocess)
        check_choice("origin", self.origin, ORIGINS)

    def __repr__(self) -> str:
        flat = flax.traverse_util.flatten_dict(self.variables, sep="/")
        config = {key: value for key, value in self.config.items() if value is not None}
        classes = [*self.classes[:3], *["..."] * (len(self.classes) > 3)]
        lines = {
            "config": config,
            "variables": f"{len(flat)} arrays, {sum(map(np.size, flat.values())):,} numbers",
            "preprocess": self.preprocess,
            "classes": f"{len(self.classes)}: {', '.join(classes)}",
            "origin": self.origin,
            "step": self.step,
        }
        return "Weights:" + "".join(f"\n  {key}: {value}" for key, value in lines.items())


def _complete(preprocess: dict[str, Any] | Preprocess) -> dict[str, Any]:
    """Returns the values of a `Preprocess`; raises UserError for missing, unknown or wrong ones."""
    values = preprocess.to_dict() if isinstance(preprocess, Preprocess) else preprocess
    wanted = {field.name for field in dataclasses.fields(Preprocess)}
    if wrong := sorted(wanted ^ values.keys()):
        raise UserError(
            f"preprocess needs {', '.join(sorted(wanted))}; missing or unknown: {', '.join(wrong)}"
        )
    return Preprocess(**values).to_dict()


def _settle(config: ConfigDict, outputs: int, preprocess: dict[str, Any]) -> None:
    """Sets the number of classes and the resolution in the config."""
    with config.unlocked():
        config.num_classes = outputs
        if preprocess["resolution"] != models.coefficients(config).resolution:
            config.resolution = preprocess["resolution"]


def load(
    source: str | pathlib.Path,
    model: str | None = None,
    origin: str | None = None,
    classes: str | Sequence[str] | None = None,
    weights: str = "ema",
    normalization: str | None = None,
    resolution: int | None = None,
) -> Weights:
    """Loads weights of any origin. No code in a file is run.

    Args:
      source: a file of weights; the workdir of a run, a checkpoint in it, or a copy of a
        checkpoint; a TensorFlow checkpoint, by its prefix, its folder or one of its files; a folder
        with a file named as in repositories of the Hub; or hf://ORG/NAME.
      model: name of the model; by default it is detected from the source's metadata or shapes. A
        name of timm's, such as "tf_efficientnet_l2.ns_jft_in1k_475", also sets the preprocessing.
      origin: one of `origins.ORIGINS`; needed if names and metadata do not determine it.
      classes: names of the outputs; or "imagenet" (the first of 1001 outputs, for background, is
        dropped), "imagenet_background" (it is kept), "imagenet21k", or a file of names. None: the
        source's, else "class 0" and so on.
      weights: "ema" or "raw", for a checkpoint that has both; or the key of a state dict in a
        PyTorch file, such as "student" or "models/student".
      normalization: one of `config.NORMALIZATIONS` instead of the origin's; AdvProp's weights need
        "inception".
      resolution: in pixels, instead of the model's own.

    Raises:
      UserError: the source can't be read; or an array is missing, left over, of another shape,
        of integers, or not finite.
    """
    arrays, stated = files.read(source, weights)
    arrays, stated, where = unwrap(arrays), dict.fromkeys(files.STATED) | stated, str(source)
    if (of_timm := timm.by_name(model or "")) and stated["config"] is None:
        if origin not in (None, of_timm["origin"]):
            raise UserError(f"{model} is a model of origin {of_timm['origin']}, not {origin}")
        stated, model = stated | of_timm, of_timm["model"]
    key = detect(arrays, where)
    if stated["config"] is None:
        origin = choose(key, origin or stated["origin"], where)
    elif origin in (None, stated["origin"]):
        origin = stated["origin"]
    else:
        raise UserError(f"{where} states that its origin is {stated['origin']}, not {origin}")
    names, is_known = NAMES[key], (model, stated["config"]) != (None, None)
    by_name = {name: arrays[place] for name, place in names.clean(arrays, weights).items()}
    model, config = _match(model or stated["model"], stated["config"], names, by_name, where)
    if key == "ours" and not is_known:
        raise UserError(
            f"{where} has our names but not the metadata that `save` writes, so the preprocessing "
            f"of its images is unknown; --model={model} uses that model's preprocessing"
        )
    if stated["config"] is None:
        preprocess = _preprocess(model, config, origin, stated["preprocess"])
        preprocess |= keras.normalization(arrays) if key == "keras" else {}
    else:
        preprocess = dict(stated["preprocess"])
    if normalization is not None:
        check_choice("normalization", normalization, default.NORMALIZATIONS)
        preprocess["mean"], preprocess["std"] = default.NORMALIZATIONS[normalization]
    if resolution is not None:
        preprocess["resolution"] = resolution
    preprocess = _complete(preprocess)

    outputs = config.num_classes
    named = _name_classes(classes, stated["classes"], outputs, where)
    _settle(config, len(named), preprocess)
    flat = {}
    for array in list_arrays(models.architecture(config)):
        value = by_name[names.of(array)]
        value = _valid(array, value, config.batch_norm_epsilon, f"{where}: {names.of(array)}")
        value = names.ours(array, value)
        if array.role == "classifier":
            value = value[..., outputs - len(named) :]  # Without the background, if it is dropped.
        flat[array.name] = np.ascontiguousarray(value)
    variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    return Weights(config.lock(), variables, preprocess, named, origin, stated["step"])


def _valid(array: Array, value: np.ndarray, epsilon: float, where: str) -> np.ndarray:
    """Returns the value of an array as float32; raises UserError if no network can have it.

    `epsilon` is BatchNorm's; `where` names the source and the array.
    """
    if not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
        raise UserError(f"{where} is {value.dtype}; quantised weights can't be read")
    value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"{where} is not finite everywhere, as after training diverged")
    if array.leaf == "var" and (value <= -epsilon).any():
        raise UserError(f"{where} has variances below 0; copy it again")
    is_zero = array.leaf in ("conv", "depthwise", "var") and not value.any()
    if is_zero or (array.leaf in ("conv", "depthwise") and _has_hole(value)):
        raise UserError(
            f"{where} is 0 {'everywhere' if is_zero else 'over a long part'}, as in a file whose "
            "download was incomplete, or that was saved before its weights were gathered; get a "
            "complete file"
        )
    return value


def _has_hole(value: np.ndarray, length: int = 8192) -> bool:
    """Whether a block of `length` numbers in a kernel is all 0, which training does not produce."""
    blocks = value.ravel()[: value.size // length * length].reshape(-1, length)
    return not blocks.any(1).all()


def _match(
    model: str | None, stated: ConfigDict | None, names: Names, arrays: Arrays, where: str
) -> tuple[str | None, ConfigDict]:
    """Returns the name (None if unnamed) and the config of the model that has the arrays.

    Args:
      model, stated: name and config, if the user or the source states them.
      names, arrays: the format's names, and the arrays by these names.
      where: the source, for messages.
    """
    bias = np.shape(arrays.get(names.of(CLASSIFIER_BIAS), 0.0))

    def mismatches(config: ConfigDict) -> tuple[int, str]:
        with config.unlocked():
            config.num_classes = bias[0] if bias and bias[0] else 1000
        return find_mismatches(list_arrays(models.architecture(config)), names, arrays)

    if stated is None and model is None:
        tried = {}
        for model in VARIANTS:
            tried[model] = mismatches(ours.config_of(model))
            if tried[model] == MATCH:
                break
        model = min(tried, key=tried.get)
        if tried[model] != MATCH:
            raise UserError(
                f"{where} fits no known model; the closest is {model}:\n{tried[model][1]}"
            )
    candidates = {} if stated is None else {"the model in its metadata": stated}
    if model is not None:
        candidates[model] = ours.config_of(model)
    for name, config in candidates.items():
        if (wrong := mismatches(config)) != MATCH:
            raise UserError(f"{where} doesn't fit {name}:\n{wrong[1]}")
    return model, next(iter(candidates.values()))


def find_mismatches(wanted: Iterable[Array], names: Names, arrays: Arrays) -> tuple[int, str]:
    """Returns the number of arrays that are missing, left over or misshapen, and a text of them."""

    def text(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape)) or "one number"

    expected = {names.of(array): text(names.shape(array)) for array in wanted}
    shapes = {name: text(np.shape(array)) for name, array in arrays.items()}
    kinds = {
        "missing": [name for name in expected if name not in shapes],
        "left over": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} (is {shapes[name]}, should be {shape})"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    lines = []
    for kind, those in kinds.items():
        lines += [f"  {kind}: {name}" for name in those[:MOST]]
        if len(those) > MOST:
            lines.append(f"  ... and {len(those) - MOST} more {kind}")
    return sum(map(len, kinds.values())), "\n".join(lines)


def _preprocess(
    model: str | None, config: ConfigDict, origin: str, stated: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the stated or the origin's preprocessing; sets padding and epsilon in the config."""
    settings = ORIGINS[origin]
    known = settings.preprocess or {model: {}}
    if model not in known:
        raise UserError(f"{origin} has no weights of {model}; it has {', '.join(known)}")
    config.padding, config.batch_norm_epsilon = settings.padding, settings.epsilon(model)
    family = default.get_config(model).preprocess
    own = Preprocess.from_config(family, models.coefficients(config).resolution).to_dict()
    return own | (stated or known[model])


def _name_classes(
    requested: str | Sequence[str] | None, own: str | Sequence[str] | None, outputs: int, where: str
) -> tuple[str, ...]:
    """Returns the names of the outputs, `requested` or the source's `own`.

    If the background output is to be dropped, its name is left out.
    """
    classes = own if requested is None else requested
    kind = classes if isinstance(classes, str) and classes in OUTPUTS else None
    if kind and outputs not in OUTPUTS[kind]:
        known = " or ".join(map(str, OUTPUTS[kind]))
        raise UserError(f"{where} has {outputs} outputs, but classes={kind!r} needs {known}")
    if classes is None or kind == "imagenet21k":
        return tuple(f"class {number}" for number in range(outputs))
    if kind:
        return ("background",) * (kind != "imagenet") + imagenet.class_names()
    if isinstance(classes, str):
        try:
            text = pathlib.Path(classes).expanduser().read_text("utf-8-sig").rstrip()
            lines = [line.strip() for line in text.splitlines()]
            classes = json.loads(text) if text.startswith(("[", "{")) else lines
        except (OSError, ValueError) as error:
            raise UserError(
                f"can't read the names of the classes from {classes}: {error}. Give a file with "
                f"one name per line, or one of: {', '.join(OUTPUTS)}"
            ) from None
    if not isinstance(classes, Sequence):
        raise UserError(f"classes must be a list of names, not {type(classes).__name__}")
    if len(classes) != outputs:
        raise UserError(f"{where} has {outputs} outputs, but {len(classes)} classes were given")
    if own == "imagenet":  # Its classes may be named by WordNet ids or by titles.
        lists = imagenet.class_names(), tuple(imagenet.titles().values())
        own = next((each for each in lists if sorted(each) == sorted(classes)), None)
    own = () if own is None or isinstance(own, str) else tuple(own)
    if own != tuple(classes) and sorted(own) == sorted(classes):
        raise UserError(
            f"the given classes are those of {where} in another order; its outputs are "
            f"{', '.join(own[:3])} and so on. Omit --classes"
        )
    return tuple(classes)


def save(
    path: str | pathlib.Path, weights: Weights, names: str = "ours", overwrite: bool = False
) -> None:
    """Writes weights as .safetensors; the metadata has config, preprocessing, classes and origin.

    Args:
      path: the file; its folder is created if missing.
      weights: the weights to write.
      names: "ours", slash-joined; or "timm", with its order of axes, for `load_state_dict`.
      overwrite: whether an existing file may be replaced.

    Raises:
      UserError: the file exists, it can't be written, timm has no names for the network, or the
        weights are inconsistent, so that `load` would reject them.
    """
    import safetensors.numpy

    check_choice("names", names, WRITTEN)
    weights.check()
    check_local("path", path)
    path = pathlib.Path(path).expanduser()
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists; --overwrite replaces it")
    if names == "timm" and weights.config.base not in FAMILIES:
        raise UserError(f"timm's names exist only for EfficientNets, not {weights.config.base}")
    flat, format = flax.traverse_util.flatten_dict(weights.variables, sep="/"), NAMES[names]
    arrays = {
        format.of(array): np.ascontiguousarray(
            format.theirs(array, np.asarray(flat[array.name], np.float32))
        )
        for array in list_arrays(models.architecture(weights.config))
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        safetensors.numpy.save_file(arrays, temporary, ours.to_metadata(weights))
        temporary.chmod(mode)  # safetensors lets only the owner read its files.
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
