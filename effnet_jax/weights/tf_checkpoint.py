"""The reference's checkpoints (tensorflow/tpu models/official/efficientnet, google/automl).

Published accuracies are those of the averages, which are stored next to the variables.
"""

import glob
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from effnet_jax.errors import UserError, check_choice
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.weights.names import TENSORFLOW, WHICH, Array, Names, by_plain_name

EMA = "/ExponentialMovingAverage"
# Names of a layer and its normalisation, by role, if no number follows.
PARTS = {
    "stem/conv": ("stem/conv2d", "stem/tpu_batch_normalization"),
    "squeeze_excite/reduce": ("se/conv2d", ""),
    "squeeze_excite/expand": ("se/conv2d_1", ""),
    "head/conv": ("head/conv2d", "head/tpu_batch_normalization"),
    "classifier": ("head/dense", ""),
}
# The model's name before these (efficientnet-b0, efficientnetv2-s) is dropped.
VARIABLE = re.compile(
    r"(?:[^/]+/)?((?:stem|head|blocks_\d+)/(?:se/)?(?:conv2d|depthwise_conv2d|dense|"
    rf"tpu_batch_normalization|batch_normalization)(?:_\d+)?/\w+)({EMA})?"
)
# Names of the optimizer's state and of the step.
SLOT = re.compile(r".*/(RMSProp|Momentum|Adam)(_\d+)?|(.*/)?global_step|.*_CHECKPOINTABLE.*")


def _parts(array: Array) -> tuple[str, str]:
    if array.role in PARTS:
        return PARTS[array.role]
    # TensorFlow numbers layers of the same kind, starting with the second.
    norm = "tpu_batch_normalization" + (f"_{array.norm}" if array.norm else "")
    if array.role == "depthwise":
        return "depthwise_conv2d", norm
    return "conv2d_1" if array.expands and array.role == "project" else "conv2d", norm


def clean(found: Iterable[str], weights: str) -> dict[str, str]:
    """See `Names.clean`."""
    found, weights = list(found), check_choice("weights", weights, WHICH)
    if weights == "ema" and not any(name.endswith(EMA) for name in found):
        raise UserError(
            "the checkpoint has no averages (.../ExponentialMovingAverage); --weights=raw reads "
            "the variables themselves"
        )
    kept = []
    for name in found:
        match = VARIABLE.fullmatch(name)
        if match is None:
            if not SLOT.fullmatch(name):
                kept.append((name, name))
        elif bool(match[2]) == (weights == "ema"):
            plain = match[1].replace("/batch_normalization", "/tpu_batch_normalization")
            kept.append((plain, name))
    return by_plain_name(kept)


NAMES = Names(
    r"([^/]+/)?(stem|blocks_\d+)/.+",
    block=lambda array: f"blocks_{array.index}/",
    parts=_parts,
    **TENSORFLOW,
    clean=clean,
)


def _preprocess(model: str) -> dict[str, Any]:
    """Returns the values of a Preprocess that differ in the reference's evaluation.

    Released checkpoints need a margin of 32 pixels, which tensorflow/tpu had until 2021. Lite
    reaches its published accuracy with bilinear resizing, which the current code does not choose.
    V2 S to XL have their own preprocessing (google/automl efficientnetv2/preprocessing.py).
    """
    base = VARIANTS[model].base
    if re.fullmatch("efficientnet_v2_.+", base):
        return {"crop_rule": "whole", "interpolation": "bilinear"}
    bilinear = base in ("efficientnet_lite", "efficientnet_edgetpu")
    interpolation = "bilinear_tf1" if bilinear else "bicubic_tf1"
    return {"crop_rule": "padding", "crop_padding": 32, "interpolation": interpolation}


PREPROCESS = {model: _preprocess(model) for model in VARIANTS}


def find(path: pathlib.Path) -> str | None:
    """Returns a checkpoint's prefix, for the prefix, one of its files or its folder; else None."""
    if path.is_dir():
        state, found = path / "checkpoint", [*path.glob("*.index")]
        if state.is_file() and (match := re.search(r'"(.+?)"', state.read_text(errors="replace"))):
            found = [*path.glob(f"{glob.escape(pathlib.PurePath(match[1]).name)}.index")]
        return str(found[0]).removesuffix(".index") if len(found) == 1 else None
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", str(path))
    return prefix if pathlib.Path(f"{prefix}.index").is_file() else None


def read(prefix: str) -> dict[str, np.ndarray]:
    """Reads the variables and their averages, by name."""
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            f"{prefix} is a TensorFlow checkpoint, which only TensorFlow can read: pip install "
            "tensorflow, if necessary in a separate environment for effnet-jax convert"
        ) from None
    try:
        reader = tf.train.load_checkpoint(prefix)
        found = [name for name in reader.get_variable_to_shape_map() if not SLOT.fullmatch(name)]
        return {name: np.asarray(reader.get_tensor(name)) for name in found}
    except Exception as error:  # TensorFlow's own types of error.
        raise UserError(f"can't read the checkpoint {prefix}: {error}") from None
