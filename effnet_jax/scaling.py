"""Compound scaling (arXiv 1905.11946, section 3), rounding, and the cost of a network.

    depth      d = alpha ** phi
    width      w = beta ** phi
    resolution r = gamma ** phi      with alpha * beta**2 * gamma**2 ~ 2, each >= 1

so that multiply-adds grow by about 2 ** phi. A small grid search at phi = 1 gave 1.2, 1.1 and 1.15.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15  # Depth, width, resolution: section 3.3, step 1.


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """The scale of a network relative to its base network, and its resolution."""

    width: float  # Multiplies every filter count.
    depth: float  # Multiplies every stage's number of blocks.
    resolution: int  # Side of the square input image, in pixels.


def compound(
    phi: float,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    base_resolution: int = 224,
    base_width: float = 1.0,
    base_depth: float = 1.0,
) -> Coefficients:
    """Applies the paper's equation 3 for any real phi. The published B1 to B7 are rounded."""
    width, depth = base_width * beta**phi, base_depth * alpha**phi
    return Coefficients(width, depth, round(base_resolution * gamma**phi))


def dropout_rate(phi: float) -> float:
    """Classifier dropout: linear from 0.2 at B0 to 0.5 at B7 (section 5.2), limited to 0 to 0.5."""
    return min(max(0.2 + 0.3 * phi / 7, 0.0), 0.5)


def round_filters(filters: int, width: float, least: float = 0.9) -> int:
    """Scales filters and rounds to a multiple of 8.

    It is the nearest one, or the next if the nearest is below `least` times the scaled number.
    Source: tensorflow/tpu models/official/efficientnet/efficientnet_model.py, round_filters.
    """
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < least * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Scales the number of blocks and rounds up. Source: the same file, round_repeats."""
    return math.ceil(depth * repeats)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution or dense layer, with all values that determine its cost."""

    name: str  # Slash-joined module path, as in the parameter tree.
    kernel: int  # Side of the square kernel; 1 for a dense layer.
    stride: int
    inputs: int
    outputs: int
    size: int  # Side of the square output; 1 for a dense layer, or after pooling.
    groups: int = 1  # Channel groups; `inputs` for a depthwise convolution.
    bias: bool = False
    norm: bool = False  # Whether a BatchNorm (scale, bias, running mean and variance) follows.

    @property
    def weights(self) -> int:
        return self.kernel**2 * (self.inputs // self.groups) * self.outputs

    @property
    def parameters(self) -> int:
        """Trainable parameters: weights, bias, and the normalisation's scale and bias."""
        return self.weights + self.outputs * (self.bias + 2 * self.norm)

    @property
    def statistics(self) -> int:
        """Running mean and variance of the normalisation."""
        return 2 * self.outputs * self.norm

    @property
    def multiply_adds(self) -> int:
        """Per image; as in the paper, without normalisation, activations and biases."""
        return self.weights * self.size**2


class Cost(NamedTuple):
    """Totals over a network's layers, for one image."""

    parameters: int
    statistics: int
    multiply_adds: int


def cost(layers: Sequence[Layer]) -> Cost:
    """Counts trainable parameters, BatchNorm statistics and multiply-adds; creates no arrays."""
    return Cost(*(sum(getattr(layer, key) for layer in layers) for key in Cost._fields))
