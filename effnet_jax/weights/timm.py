"""timm and geffnet (huggingface/pytorch-image-models, rwightman/gen-efficientnet-pytorch).

One set of names, two kinds of weights, which the names don't tell apart: those of TensorFlow, of
models called tf_efficientnet..., and timm's own. Settings: timm/models/efficientnet.py at aa4b585.
"""

import json
import pathlib
import re
from typing import Any, NamedTuple

from effnet_jax.config import NORMALIZATIONS
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.weights import names
from effnet_jax.weights.names import Place
from effnet_jax.weights.ours import Facts

OUTSIDE = {"stem/conv": "conv_stem", "head/conv": "conv_head", "classifier": "classifier"}
SQUEEZE = {
    "squeeze_excite/reduce": "se.conv_reduce",
    "squeeze_excite/expand": "se.conv_expand",
}


def _layer(place: Place) -> str:
    if place.role in OUTSIDE:
        return OUTSIDE[place.role]
    if place.role in SQUEEZE:
        part = SQUEEZE[place.role]
    elif place.role == "expand":
        part = "conv_exp" if place.fused else "conv_pw"
    elif place.role == "depthwise":
        part = "conv_dw"
    elif place.expands:
        part = "conv_pwl"
    else:
        part = "conv" if place.fused else "conv_pw"
    return f"blocks.{place.stage}.{place.block}.{part}"


def _norm(place: Place) -> str:
    if place.role in OUTSIDE:
        return {"stem/conv": "bn1", "head/conv": "bn2"}[place.role]
    return f"blocks.{place.stage}.{place.block}.bn{place.norm + 1}"


NAMES = names.torch(r"(conv_stem|blocks\.\d+\.\d+)\..+", _layer, _norm)


class Recipe(NamedTuple):
    """timm's `_cfg` of a model, where it isn't the default."""

    crop: float = 0.875
    size: int | None = None  # None: the model's own.
    normalization: str = "imagenet"
    interpolation: str = "bicubic"
    squash: bool = False


# Of tf_efficientnet...: one for all tags but AdvProp's and 21k's, which normalise as "inception".
TENSORFLOW = {
    "b0": Recipe(),
    "b1": Recipe(0.882),
    "b2": Recipe(0.890),
    "b3": Recipe(0.904),
    "b4": Recipe(0.922),
    "b5": Recipe(0.934),
    "b6": Recipe(0.942),
    "b7": Recipe(0.949),
    "b8": Recipe(0.954),
    "l2": Recipe(0.96),
    "lite0": Recipe(0.875, None, "inception"),
    "lite1": Recipe(0.882, None, "inception"),
    "lite2": Recipe(0.890, None, "inception"),
    "lite3": Recipe(0.904, 300, "inception", "bilinear"),
    "lite4": Recipe(0.920, 380, "inception", "bilinear"),
    "edgetpu-s": Recipe(0.875, None, "inception"),
    "edgetpu-m": Recipe(0.882, None, "inception"),
    "edgetpu-l": Recipe(0.904, None, "inception"),
    "v2-b0": Recipe(),
    "v2-b1": Recipe(0.882),
    "v2-b2": Recipe(0.890),
    "v2-b3": Recipe(0.904),
    "v2-s": Recipe(1.0, None, "inception"),
    "v2-m": Recipe(1.0, None, "inception", squash=True),
    "v2-l": Recipe(1.0, None, "inception", squash=True),
    "v2-xl": Recipe(1.0, None, "inception", squash=True),
}
# Of timm's own, of each model the tag that create_model loads. Those without weights have its
# settings as well.
OWN = {
    **{name: recipe._replace(normalization="imagenet") for name, recipe in TENSORFLOW.items()},
    "b1": Recipe(1.0, 288, "inception"),
    "b2": Recipe(1.0, 288),
    "b3": Recipe(1.0, 320),
    "b4": Recipe(1.0, 384),
    "b5": Recipe(1.0, 448, squash=True),
    "lite3": Recipe(0.904, 300),
    "lite4": Recipe(0.922, 380),
    "v2-m": Recipe(1.0, 416),
    "v2-l": Recipe(1.0, 480),
    "v2-xl": Recipe(1.0, 512),
}


def preprocess(recipe: Recipe) -> dict[str, Any]:
    """The keys of a Preprocess that timm's `create_transform` stands for."""
    mean, std = NORMALIZATIONS[recipe.normalization]
    sized = {} if recipe.size is None else {"resolution": recipe.size}
    return {
        **sized,
        "crop_rule": "whole" if recipe.squash else "resize",
        "crop_fraction": recipe.crop,
        "interpolation": f"{recipe.interpolation}_pillow",
        "mean": mean,
        "std": std,
    }


def model_of(architecture: str) -> str | None:
    """Our name of a model by timm's, as in "tf_efficientnetv2_b0.in1k"; None: it isn't ours."""
    match = re.fullmatch(r"(?:tf_)?efficientnet(v2)?_(\w+?)(?:\..*)?", architecture)
    if not match:
        return None
    name = match[2]
    if not match[1] and name in ("es", "em", "el"):
        name = f"edgetpu-{name[1]}"
    name = f"v2-{name}" if match[1] else name
    return name if name in VARIANTS else None


def read_config(path: pathlib.Path) -> Facts | None:
    """What a config.json as in timm's repositories says of the weights beside it.

    The classes are told by the tag that names the data. None where the file is missing, or another
    program's.
    """
    try:
        content = json.loads(path.read_text())
        name, recipe = content["architecture"], content["pretrained_cfg"]
        # Optional keys, of a file that isn't ours.
        size = recipe.get("test_input_size") or recipe["input_size"]
        data = re.search("in1k$|in21k$", recipe.get("tag") or "")
        found = {
            "resolution": size[-1],
            "crop_rule": "whole" if recipe.get("crop_mode") == "squash" else "resize",
            "crop_fraction": recipe.get("test_crop_pct") or recipe["crop_pct"],
            "interpolation": f"{recipe['interpolation']}_pillow",
            "mean": tuple(recipe["mean"]),
            "std": tuple(recipe["std"]),
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    origin = "timm_tf" if name.startswith("tf_") else "timm"
    classes = {"in1k": "imagenet", "in21k": "imagenet21k"}[data[0]] if data else None
    return Facts(model=model_of(name), origin=origin, preprocess=found, classes=classes)
