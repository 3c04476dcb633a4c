"""torchvision (pytorch/vision, torchvision/models/efficientnet.py).

Its B5 to B7 have TensorFlow's weights, although torchvision runs them with PyTorch's padding.
"""

from typing import Any

from effnet_jax.weights.names import TORCH, Array, Names
from effnet_jax.weights.timm import recipe

SQUEEZE = {"squeeze_excite/reduce": "fc1", "squeeze_excite/expand": "fc2"}


def _parts(array: Array) -> tuple[str, str]:
    if array.role == "classifier":
        return "classifier.1", ""
    if array.role in ("stem/conv", "head/conv"):
        path = f"features.{0 if array.role == 'stem/conv' else array.stages + 1}"
    else:  # Numbered in the block; the two layers of squeeze-excitation share a number.
        modules = list(dict.fromkeys(role.partition("/")[0] for role in array.roles))
        path = str(modules.index(array.role.partition("/")[0]))
    return f"{path}.{SQUEEZE.get(array.role, '0')}", f"{path}.1"


NAMES = Names(
    r"features\.\d+\..+",
    block=lambda array: f"features.{array.stage + 1}.{array.block}.block.",
    parts=_parts,
    **TORCH,
)
TORCH_EPSILON = ("b0", "b1", "b2", "b3", "b4")  # Models with PyTorch's epsilon of BatchNorm.
# For each model's DEFAULT weights; the crop is the square's side divided by the resized side.
RECIPES = {
    "b0": recipe(224 / 256, 224),
    "b1": recipe(240 / 255, 240, interpolation="bilinear"),
    "b2": recipe(288 / 288, 288),
    "b3": recipe(300 / 320, 300),
    "b4": recipe(380 / 384, 380),
    "b5": recipe(456 / 456, 456),
    "b6": recipe(528 / 528, 528),
    "b7": recipe(600 / 600, 600),
    "v2-s": recipe(384 / 384, 384, interpolation="bilinear"),
    "v2-m": recipe(480 / 480, 480, interpolation="bilinear"),
    "v2-l": recipe(480 / 480, 480, "inception"),
}
# By the start of a downloaded file's name: B1's IMAGENET1K_V1, which is older than its DEFAULT.
OLDER = {"efficientnet_b1_rwightman": recipe(240 / 256, 240)}


def by_file(name: str) -> dict[str, Any]:
    """Returns the origin and preprocess that a file's name implies; empty if it implies none."""
    found = [each for start, each in OLDER.items() if name.startswith(start)]
    return {"origin": "torchvision", "preprocess": found[0]} if found else {}
