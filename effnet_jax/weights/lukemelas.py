"""lukemelas/EfficientNet-PyTorch, and what is derived from it, as efficientnet-lite-pytorch.

The weights are TensorFlow's, and so are padding and epsilon.
"""

from effnet_jax.weights import names
from effnet_jax.weights.names import Place

OUTSIDE = {"stem/conv": "_conv_stem", "head/conv": "_conv_head", "classifier": "_fc"}
PARTS = {
    "expand": "_expand_conv",
    "depthwise": "_depthwise_conv",
    "squeeze_excite/reduce": "_se_reduce",
    "squeeze_excite/expand": "_se_expand",
    "project": "_project_conv",
}
# A block without expansion starts with _bn1.
NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def _layer(place: Place) -> str:
    return OUTSIDE.get(place.role) or f"_blocks.{place.index}.{PARTS[place.role]}"


def _norm(place: Place) -> str:
    outside = {"stem/conv": "_bn0", "head/conv": "_bn1"}
    return outside.get(place.role) or f"_blocks.{place.index}.{NORMS[place.role]}"


NAMES = names.torch(r"_(conv_stem|blocks)\..+", _layer, _norm)
