"""torchvision (pytorch/vision, torchvision/models/efficientnet.py).

Its B5 to B7 are TensorFlow's weights, run with PyTorch's padding all the same.
"""

from typing import Any, NamedTuple

from effnet_jax.config import NORMALIZATIONS
from effnet_jax.weights import names
from effnet_jax.weights.names import Place


def _part(place: Place) -> str:
    """The path down to the convolution and its normalisation, or to the squeeze-excitation."""
    if place.role in ("stem/conv", "head/conv"):
        return f"features.{0 if place.role == 'stem/conv' else place.stages + 1}"
    parts = [*place.norms]
    if place.squeezes:
        parts.insert(parts.index("depthwise") + 1, "squeeze_excite")
    number = parts.index(place.role.partition("/")[0])
    return f"features.{place.stage + 1}.{place.block}.block.{number}"


def _layer(place: Place) -> str:
    if place.role == "classifier":
        return "classifier.1"
    squeeze = {"squeeze_excite/reduce": "fc1", "squeeze_excite/expand": "fc2"}
    return f"{_part(place)}.{squeeze.get(place.role, '0')}"


def _norm(place: Place) -> str:
    return f"{_part(place)}.1"


NAMES = names.torch(r"features\.\d+\..+", _layer, _norm)


class Recipe(NamedTuple):
    """The crop and what it is cut from, in pixels, and how that is resized."""

    crop: int
    resize: int
    interpolation: str = "bicubic"
    normalization: str = "imagenet"


# Of each model's DEFAULT weights. B1's IMAGENET1K_V1, which its DEFAULT replaced, is resized to 256
# pixels, by "bicubic".
RECIPES = {
    "b0": Recipe(224, 256),
    "b1": Recipe(240, 255, "bilinear"),
    "b2": Recipe(288, 288),
    "b3": Recipe(300, 320),
    "b4": Recipe(380, 384),
    "b5": Recipe(456, 456),
    "b6": Recipe(528, 528),
    "b7": Recipe(600, 600),
    "v2-s": Recipe(384, 384, "bilinear"),
    "v2-m": Recipe(480, 480, "bilinear"),
    "v2-l": Recipe(480, 480, "bicubic", "inception"),
}


def preprocess(recipe: Recipe) -> dict[str, Any]:
    """The keys of a Preprocess that its ImageClassification stands for."""
    mean, std = NORMALIZATIONS[recipe.normalization]
    return {
        "resolution": recipe.crop,
        "crop_rule": "resize",
        "crop_fraction": recipe.crop / recipe.resize,
        "interpolation": f"{recipe.interpolation}_pillow",
        "mean": mean,
        "std": std,
    }


def epsilon(model: str) -> float:
    """Of BatchNorm."""
    return 1e-5 if model in ("b0", "b1", "b2", "b3", "b4") else 1e-3
