"""The reference's checkpoints (tensorflow/tpu models/official/efficientnet, google/automl).

Published accuracies are those of the averages, which lie beside the variables themselves.
"""

import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from effnet_jax.errors import UserError
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.weights import names
from effnet_jax.weights.names import Place, Shapes

EMA = "/ExponentialMovingAverage"
OUTSIDE = {"stem/conv": "stem/conv2d", "head/conv": "head/conv2d", "classifier": "head/dense"}
SQUEEZE = {"squeeze_excite/reduce": "se/conv2d", "squeeze_excite/expand": "se/conv2d_1"}
# Before these the model's own name, which is dropped: efficientnet-b0, efficientnetv2-s.
VARIABLE = re.compile(
    r"(?:[^/]+/)?((?:stem|head|blocks_\d+)/(?:se/)?(?:conv2d|depthwise_conv2d|dense|"
    rf"tpu_batch_normalization|batch_normalization)(?:_\d+)?/\w+)({EMA})?"
)
# Of the optimizer, and the step.
SLOT = re.compile(r".*/(RMSProp|Momentum|Adam)(_\d+)?|(.*/)?global_step|.*_CHECKPOINTABLE.*")


def _nth(name: str, number: int) -> str:
    """TensorFlow numbers layers of a kind from the second on."""
    return f"{name}_{number}" if number else name


def _layer(place: Place) -> str:
    if place.role in OUTSIDE:
        return OUTSIDE[place.role]
    if place.role == "depthwise":
        part = "depthwise_conv2d"
    else:
        part = SQUEEZE.get(place.role) or _nth("conv2d", place.expands * (place.role == "project"))
    return f"blocks_{place.index}/{part}"


def _norm(place: Place) -> str:
    if place.role in OUTSIDE:
        return f"{place.role.partition('/')[0]}/tpu_batch_normalization"
    return f"blocks_{place.index}/{_nth('tpu_batch_normalization', place.norm)}"


def clean(found: Iterable[str], weights: str) -> dict[str, str]:
    """See `Names.clean`."""
    found = list(found)
    if weights == "ema" and not any(name.endswith(EMA) for name in found):
        raise UserError(
            "the checkpoint has no averages (.../ExponentialMovingAverage); --weights=raw takes "
            "the variables themselves"
        )
    kept = {}
    for name in found:
        match = VARIABLE.fullmatch(name)
        if match is None:
            if not SLOT.fullmatch(name):
                kept[name] = name
        elif bool(match[2]) == (weights == "ema"):
            plain = match[1].replace("/batch_normalization", "/tpu_batch_normalization")
            kept[plain] = name
    return kept


NAMES = names.tensorflow(r"([^/]+/)?(stem|blocks_\d+)/.+", _layer, _norm, clean)


def preprocess(model: str) -> dict[str, Any]:
    """What a Preprocess of the reference's evaluation has beside the family's normalisation.

    Released checkpoints go with a margin of 32 pixels, which tensorflow/tpu had until 2021. Lite's
    published accuracy is met with bilinear resizing, which its code as it is now doesn't choose.
    V2's from S on have preprocessing of their own (google/automl efficientnetv2/preprocessing.py).
    """
    base = VARIANTS[model].base
    if re.fullmatch("efficientnet_v2_.+", base):
        return {"crop_rule": "whole", "interpolation": "bilinear"}
    bilinear = base in ("efficientnet_lite", "efficientnet_edgetpu")
    interpolation = "bilinear_tf1" if bilinear else "bicubic_tf1"
    return {"crop_rule": "padding", "crop_padding": 32, "interpolation": interpolation}


def find(path: pathlib.Path) -> str | None:
    """The prefix of a checkpoint's files, given that, one of them, or their folder; else None."""
    if path.is_dir():
        state = path / "checkpoint"
        if state.is_file() and (match := re.search(r'"(.+?)"', state.read_text(errors="replace"))):
            newest = path / pathlib.PurePath(match[1]).name
            return str(newest) if newest.with_name(newest.name + ".index").is_file() else None
        prefixes = sorted(path.glob("*.index"))
        return str(prefixes[0]).removesuffix(".index") if len(prefixes) == 1 else None
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", str(path))
    return prefix if pathlib.Path(f"{prefix}.index").is_file() else None


def read(prefix: str) -> tuple[Shapes, Callable[[str], np.ndarray]]:
    """Shapes by name, and what reads an array."""
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            f"{prefix} is a TensorFlow checkpoint, which TensorFlow alone can read: "
            "pip install 'effnet_jax[tensorflow]', if need be in an environment of its own for "
            "python -m effnet_jax.tools.convert"
        ) from None
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # TensorFlow's own kinds.
        raise UserError(f"can't read the checkpoint {prefix}: {error}") from None
    return shapes, reader.get_tensor
