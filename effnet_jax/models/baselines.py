"""MobileNet V1 and V2, and ResNet of any depth: the other base networks of the paper's Table 3.

MobileNet: arXiv 1704.04861, Table 1; 1801.04381, Table 2; ReLU6 as in the authors' code
(tensorflow/models research/slim/nets). ResNet: arXiv 1512.03385, for ImageNet and, section 4.2,
for small images, whose deepest members come from 1603.05027, section 5. From later work: the stride
of a bottleneck is in its 3x3 convolution ("v1.5"), and the last normalisation of a branch starts at
0, so that a fresh block returns its input.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from effnet_jax.errors import UserError
from effnet_jax.models.mbconv import block_of
from effnet_jax.models.network import Base, Block, Function, LayerFactories, Stage, Stem
from effnet_jax.scaling import Layer

# MobileNetV1: 4,231,976 parameters and 569 M multiply-adds at 224 pixels. The paper prints stride 2
# in its last row, but its sizes and counts are those of stride 1.
V1 = (
    Stage(stride=1, filters=64, repeats=1),
    Stage(stride=2, filters=128, repeats=2),
    Stage(stride=2, filters=256, repeats=2),
    Stage(stride=2, filters=512, repeats=6),
    Stage(stride=2, filters=1024, repeats=2),
)
# MobileNetV2: 3,504,872 parameters and 301 M multiply-adds. EfficientNet uses the same block and
# adds squeeze-excitation.
V2 = (
    Stage(kernel=3, stride=1, expand=1, filters=16, repeats=1),
    Stage(kernel=3, stride=2, expand=6, filters=24, repeats=2),
    Stage(kernel=3, stride=2, expand=6, filters=32, repeats=3),
    Stage(kernel=3, stride=2, expand=6, filters=64, repeats=4),
    Stage(kernel=3, stride=1, expand=6, filters=96, repeats=3),
    Stage(kernel=3, stride=2, expand=6, filters=160, repeats=3),
    Stage(kernel=3, stride=1, expand=6, filters=320, repeats=1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Block):
    """Depthwise 3x3, then pointwise, each with normalisation and activation."""

    def layers(self, size: int) -> list[Layer]:
        name, inputs, end = self.name, self.inputs, -(-size // self.stride)
        return [
            Layer(f"{name}/depthwise", 3, self.stride, inputs, inputs, end, inputs, norm=True),
            Layer(f"{name}/pointwise", 1, 1, inputs, self.outputs, end, norm=True),
        ]

    def apply(self, make: LayerFactories, x: jax.Array, drop: Function) -> jax.Array:
        x = make.depthwise(3, self.stride, name="depthwise")(x)
        x = make.act(make.norm(name="depthwise_norm")(x))
        return make.act(make.conv_norm(x, "pointwise", 1, 1, self.outputs))


def separable(row: Stage, rounded: Callable[[int], int], **block: Any) -> Separable:
    """Returns a block of `row` without a skip; see `Base.block`."""
    return Separable(outputs=rounded(row.filters), skip=False, **block)


_mobilenet = functools.partial(Base, activation="relu6", dropout=0.2)
MOBILENETS = {
    "mobilenet_v1": _mobilenet(stages=V1, block=separable),
    # The head is never narrower than in the unscaled network (section 5).
    "mobilenet_v2": _mobilenet(stages=V2, block=block_of, head_filters=1280, narrow_head=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual(Block):
    """Convolutions with normalisation, added to the block's input; activations between and after.

    If the block changes the size or the channels, its input first goes through a 1x1 convolution
    with normalisation.
    """

    branch: tuple[tuple[str, int, int, int], ...]  # Name, kernel, stride, filters.

    def layers(self, size: int) -> list[Layer]:
        rows, channels, end = [], self.inputs, -(-size // self.stride)
        if not self.has_skip:
            name = f"{self.name}/shortcut"
            rows.append(Layer(name, 1, self.stride, channels, self.outputs, end, norm=True))
        for name, kernel, stride, filters in self.branch:
            size = -(-size // stride)
            name = f"{self.name}/{name}"
            rows.append(Layer(name, kernel, stride, channels, filters, size, norm=True))
            channels = filters
        return rows

    def apply(self, make: LayerFactories, x: jax.Array, drop: Function) -> jax.Array:
        shortcut = x
        if not self.has_skip:
            shortcut = make.conv_norm(x, "shortcut", 1, self.stride, self.outputs)
        *before, last = self.branch
        for convolution in before:
            x = make.act(make.conv_norm(x, *convolution))
        x = make.conv_norm(x, *last, scale_init=nn.initializers.zeros)
        return make.act(drop(x) + shortcut)


def residual(
    row: Stage, rounded: Callable[[int], int], bottleneck: bool, stride: int, **block: Any
) -> Residual:
    """Returns a block of `row`. The width scales its inner filters; see `Base.block`."""
    filters = rounded(row.filters)
    branch = ("conv1", 3, stride, filters), ("conv2", 3, 1, filters)
    if bottleneck:
        inner = ("reduce", 1, 1, filters), ("spatial", 3, stride, filters)
        branch = *inner, ("expand", 1, 1, 4 * filters)
    return Residual(stride=stride, branch=branch, outputs=branch[-1][-1], **block)


def _resnet(*repeats: int, bottleneck: bool = False, small: bool = False) -> Base:
    """Returns a ResNet with `repeats` blocks by stage; the filters double from stage to stage.

    With `small`, for small images, the stem is a 3x3 convolution with stride 1, without pooling.
    """
    filters = 16 if small else 64
    return Base(
        stages=tuple(
            Stage(stride=1 if i == 0 else 2, filters=filters * 2**i, repeats=count)
            for i, count in enumerate(repeats)
        ),
        block=functools.partial(residual, bottleneck=bottleneck),
        stem=Stem(filters, stride=1) if small else Stem(filters, kernel=7, pool=True),
        activation="relu",
        resolution=32 if small else 224,
        dropout=0.0,
    )


# Parameters with 1000 classes, and multiply-adds at 224 pixels.
RESNETS = {
    18: _resnet(2, 2, 2, 2),  # 11,689,512; 1.814 G
    34: _resnet(3, 4, 6, 3),  # 21,797,672; 3.664 G
    50: _resnet(3, 4, 6, 3, bottleneck=True),  # 25,557,032; 4.089 G
    101: _resnet(3, 4, 23, 3, bottleneck=True),  # 44,549,160; 7.801 G
    152: _resnet(3, 8, 36, 3, bottleneck=True),  # 60,192,808; 11.514 G
    200: _resnet(3, 24, 36, 3, bottleneck=True),  # 64,673,832 (arXiv 1603.05027, section 5)
}
# ResNets for small images have 3 stages of n blocks. With 2 convolutions in a block they have
# 6n + 2 layers; with 3, from 164 layers on, 9n + 2.
DEPTHS = {
    **{6 * n + 2: _resnet(n, n, n, small=True) for n in range(3, 167)},
    **{9 * n + 2: _resnet(n, n, n, small=True, bottleneck=True) for n in range(18, 112)},
    **RESNETS,
}


def resnet(depth: int) -> Base:
    """Returns ResNet-`depth`; raises UserError with the nearest depths if it does not exist."""
    if depth not in DEPTHS:
        nearest = sorted(sorted(DEPTHS), key=lambda other: abs(other - depth))[:4]
        near = ", ".join(f"resnet{other}" for other in sorted(nearest))
        raise UserError(
            f"there is no ResNet with {depth} layers; the nearest are {near}. Depths are "
            f"{', '.join(map(str, RESNETS))}, and for small images 6n + 2, or 9n + 2 from 164 on"
        )
    return DEPTHS[depth]
