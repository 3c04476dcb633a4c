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
from effnet_jax.models import layers
from effnet_jax.models.network import Base, Block, LayerFactories, Stage, Stem
from effnet_jax.scaling import Layer

LOWEST, DEEPEST = 18, 1001
EXPANSION = 4  # Outputs of a bottleneck over its inner filters.


class Form(NamedTuple):
    """What a depth stands for."""

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


def _form(depth: int) -> Form | None:
    """The form of a depth, None where there is none."""
    if not LOWEST <= depth <= DEEPEST:
        return None
    if depth in IMAGENET:
        return IMAGENET[depth]
    if depth >= 164 and (depth - 2) % 9 == 0:  # 3 stages of n blocks of 3 convolutions.
        return Form(True, True, _stages(16, *[(depth - 2) // 9] * 3))
    if (depth - 2) % 6 == 0:  # 3 stages of n blocks of 2.
        return Form(False, True, _stages(16, *[(depth - 2) // 6] * 3))
    return None


def form(depth: int) -> Form:
    """What ResNet-`depth` is; a UserError that names the nearest depths where it is nothing."""
    found = _form(depth)
    if found is None:
        valid = [other for other in range(LOWEST, DEEPEST + 1) if _form(other)]
        nearest = sorted(sorted(valid, key=lambda other: abs(other - depth))[:4])
        raise UserError(
            f"there is no ResNet with {depth} layers; the nearest are "
            f"{', '.join(f'resnet{other}' for other in nearest)}. From {LOWEST} to {DEEPEST} there "
            f"are {', '.join(map(str, IMAGENET))}, and for small images 6n + 2, and 9n + 2 from 164"
        )
    return found


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

    Attributes:
      branch: its convolutions, in order.
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

    def module(self, factories: LayerFactories, name: str) -> nn.Module:
        return ResidualModule(factories, self, name=name)


class ResidualModule(nn.Module):
    """See `Residual`."""

    factories: LayerFactories
    spec: Residual

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, make, shortcut = self.spec, self.factories, x
        if not spec.has_skip:
            shortcut = make.conv(spec.outputs, 1, spec.stride, name="shortcut")(x)
            shortcut = make.norm(name="shortcut_norm")(shortcut)
        *before, last = spec.branch
        for name, kernel, stride, filters in before:
            x = make.conv(filters, kernel, stride, name=name)(x)
            x = make.act(make.norm(name=f"{name}_norm")(x))
        x = make.conv(last.filters, last.kernel, last.stride, name=last.name)(x)
        x = make.norm(scale_init=nn.initializers.zeros, name=f"{last.name}_norm")(x)
        if train:
            x = layers.stochastic_depth(x, spec.survival, self.make_rng("stochastic_depth"))
        return make.act(x + shortcut)


def residual(
    row: Stage, rounded: Callable[[int], int], bottleneck: bool, stride: int, **block: Any
) -> Residual:
    """A block of `row`; `block`: its name, inputs and survival. Width scales the inner filters."""
    filters = rounded(row.filters)
    if bottleneck:
        branch = (
            Convolution("reduce", 1, 1, filters),
            Convolution("spatial", 3, stride, filters),
            Convolution("expand", 1, 1, EXPANSION * filters),
        )
    else:
        branch = (Convolution("conv1", 3, stride, filters), Convolution("conv2", 3, 1, filters))
    return Residual(stride=stride, branch=branch, outputs=branch[-1].filters, **block)


def base(depth: int) -> Base:
    """ResNet-`depth`; a UserError that names the nearest depths where there is none."""
    bottleneck, small, stages = form(depth)
    filters = stages[0].filters
    return Base(
        stages=stages,
        block=functools.partial(residual, bottleneck=bottleneck),
        stem=Stem(filters, stride=1) if small else Stem(filters, kernel=7, pool=True),
        activation=nn.relu,
        resolution=32 if small else 224,
        dropout=0.0,
    )
