"""Our names of arrays -> timm's, and our layout -> PyTorch's."""

from typing import Any

import flax
import numpy as np

PyTree = Any

# What timm calls the parts of a block, by whether it has a depthwise convolution and an expansion.
_PARTS = {
    (True, True): ("expand conv_pw", "depthwise conv_dw", "project conv_pwl"),
    (True, False): ("depthwise conv_dw", "project conv_pw"),
    (False, True): ("expand conv_exp", "project conv_pwl"),
    (False, False): ("project conv",),
}
_ENDS = {"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2")}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def timm_name(path: tuple[str, ...], params: PyTree) -> str:
    """What timm calls an array of the network with these parameters."""
    first, *inner, leaf = path
    leaf = _LEAVES.get(leaf, leaf)
    if first == "classifier":
        return f"classifier.{leaf}"
    if first in _ENDS:
        return f"{_ENDS[first][inner == ['norm']]}.{leaf}"
    block, part, *below = inner
    place = f"blocks.{int(first[5:]) - 1}.{int(block[5:]) - 1}"
    if below:
        return f"{place}.se.conv_{below[0]}.{leaf}"
    kind = tuple(each in params[first][block] for each in ("depthwise", "expand"))
    order = dict(each.split() for each in _PARTS[kind])
    convolution = part.removesuffix("_norm")
    number = list(order).index(convolution) + 1
    return f"{place}.{order[convolution] if part == convolution else f'bn{number}'}.{leaf}"


def in_timm_form(variables: PyTree) -> dict[str, np.ndarray]:
    """Variables, or gradients beside statistics, by timm's names and in PyTorch's layout."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        timm_name(path, variables["params"]): np.transpose(x, axes[np.ndim(x)]).copy()
        for collection in variables.values()
        for path, x in flax.traverse_util.flatten_dict(collection).items()
    }
