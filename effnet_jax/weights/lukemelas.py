"""lukemelas/EfficientNet-PyTorch and projects derived from it, such as efficientnet-lite-pytorch.

The weights, padding and epsilon are TensorFlow's.
"""

from effnet_jax.weights.names import TORCH, Names

# Names of a layer and its normalisation, by role. A block without expansion starts with _bn1.
PARTS = {
    "stem/conv": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "squeeze_excite/reduce": ("_se_reduce", ""),
    "squeeze_excite/expand": ("_se_expand", ""),
    "project": ("_project_conv", "_bn2"),
    "head/conv": ("_conv_head", "_bn1"),
    "classifier": ("_fc", ""),
}
NAMES = Names(
    r"_(conv_stem|blocks)\..+",
    block=lambda array: f"_blocks.{array.index}.",
    parts=lambda array: PARTS[array.role],
    **TORCH,
)
