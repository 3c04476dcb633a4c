"""ResNet of any depth (arXiv 1512.03385), another of the base networks of Table 3.

Two forms, by depth: the ImageNet form, and the small-image form of section 4.2, whose deepest
members come from arXiv 1603.05027, section 5. All have the activation after the addition, as in the
first paper. Of what came later: the stride of a bottleneck is in its 3x3 convolution ("v1.5"), and
the last normalisation of a branch starts at 0, so that a fresh block passes its input on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from effnet_jax.errors import UserError
from effnet_jax.models.network import Base, Block, Function, LayerFactories, Stage, Stem
from effnet_jax.scaling import Layer


class Form(NamedTuple):
    """The blocks, the stem and the stages of a depth."""

    bottleneck: bool
    small: bool  # The stem is one 3x3 convolution with stride 1, without pooling.
    stages: tuple[Stage, ...]


def _stages(filters: int, *repeats: int) -> tuple[Stage, ...]:
    """Filters double where the size halves; the first stage keeps the size of the stem."""
    return tuple(
        Stage(stride=1 if i == 0 else 2, filters=filters * 2**i, repeats=count)
        for i, count in enumerate(repeats)
    )


# Parameters with 1000 classes, and multiply-adds at 224 pixels.
IMAGENET = {
    18: Form(False, False, _stages(64, 2, 2, 2, 2)),  # 11,689,512; 1.814 G
    34: Form(False, False, _stages(64, 3, 4, 6, 3)),  # 21,797,672; 3.664 G
    50: Form(True, False, _stages(64, 3, 4, 6, 3)),  # 25,557,032; 4.089 G
    101: Form(True, False, _stages(64, 3, 4, 23, 3)),  # 44,549,160; 7.801 G
    152: Form(True, False, _stages(64, 3, 8, 36, 3)),  # 60,192,808; 11.514 G
    200: Form(True, False, _stages(64, 3, 24, 36, 3)),  # 64,673,832 (arXiv 1603.05027, section 5)
}
# By depth. The small forms have 3 stages of n blocks, each of 2 convolutions, or from 164 on of 3.
FORMS = {
    **{6 * n + 2: Form(False, True, _stages(16, n, n, n)) for n in range(3, 167)},
    **{9 * n + 2: Form(True, True, _stages(16, n, n, n)) for n in range(18, 112)},
    **IMAGENET,
}


class Convolution(NamedTuple):
    """A layer of a residual branch."""

    name: str
    kernel: int
    stride: int
    filters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual(Block):
    """Convolutions with normalisation, added to the block's input; activations between and after.

    Where the block changes size or channels, the input goes through a 1x1 convolution with
    normalisation first.
    """

    branch: tuple[Convolution, ...]

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
    """A block of `row`, whose width scales the inner filters; see `Base.block`."""
    filters = rounded(row.filters)
    branch = (Convolution("conv1", 3, stride, filters), Convolution("conv2", 3, 1, filters))
    if bottleneck:
        branch = (
            Convolution("reduce", 1, 1, filters),
            Convolution("spatial", 3, stride, filters),
            Convolution("expand", 1, 1, 4 * filters),
        )
    return Residual(stride=stride, branch=branch, outputs=branch[-1].filters, **block)


def base(depth: int) -> Base:
    """ResNet-`depth`; a UserError that names the nearest depths where there is none."""
    if depth not in FORMS:
        nearest = sorted(sorted(FORMS), key=lambda other: abs(other - depth))[:4]
        raise UserError(
            f"there is no ResNet with {depth} layers; the nearest are "
            f"{', '.join(f'resnet{other}' for other in sorted(nearest))}. From {min(FORMS)} to "
            f"{max(FORMS)} there are {', '.join(map(str, IMAGENET))}, and for small images 6n + 2, "
            "and 9n + 2 from 164"
        )
    bottleneck, small, stages = FORMS[depth]
    filters = stages[0].filters
    return Base(
        stages=stages,
        block=functools.partial(residual, bottleneck=bottleneck),
        stem=Stem(filters, stride=1) if small else Stem(filters, kernel=7, pool=True),
        activation=nn.relu,
        resolution=32 if small else 224,
        dropout=0.0,
    )
