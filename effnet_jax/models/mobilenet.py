"""MobileNetV1 (arXiv 1704.04861, Table 1) and V2 (arXiv 1801.04381, Table 2).

Two of the base networks that the EfficientNet paper scales in its Table 3. Both use ReLU6, as the
authors' code does (tensorflow/models research/slim/nets, mobilenet_v1.py and mobilenet/).
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from effnet_jax import scaling
from effnet_jax.models.mbconv import Stage, block_of
from effnet_jax.models.network import Architecture, Block, Parts, Stem, scale_stages
from effnet_jax.scaling import Coefficients, Layer

STEM_FILTERS = 32


class SeparableStage(NamedTuple):
    """`repeats` depthwise separable convolutions, of which only the first has the stride."""

    stride: int
    filters: int
    repeats: int


# 4,231,976 parameters and 569 M multiply-adds at 224 pixels. The paper prints stride 2 in its last
# row, whose sizes and counts are those of stride 1.
V1_STAGES = (
    SeparableStage(stride=1, filters=64, repeats=1),
    SeparableStage(stride=2, filters=128, repeats=2),
    SeparableStage(stride=2, filters=256, repeats=2),
    SeparableStage(stride=2, filters=512, repeats=6),
    SeparableStage(stride=2, filters=1024, repeats=2),
)
# 3,504,872 parameters and 301 M multiply-adds. The block is EfficientNet's, which took it from
# here, without squeeze-excitation.
V2_STAGES = (
    Stage(kernel=3, stride=1, expand=1, filters=16, repeats=1),
    Stage(kernel=3, stride=2, expand=6, filters=24, repeats=2),
    Stage(kernel=3, stride=2, expand=6, filters=32, repeats=3),
    Stage(kernel=3, stride=2, expand=6, filters=64, repeats=4),
    Stage(kernel=3, stride=1, expand=6, filters=96, repeats=3),
    Stage(kernel=3, stride=2, expand=6, filters=160, repeats=3),
    Stage(kernel=3, stride=1, expand=6, filters=320, repeats=1),
)
V2_HEAD_FILTERS = 1280


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Block):
    """Depthwise 3x3, then pointwise, each with normalisation and activation."""

    def layers(self, size: int) -> list[Layer]:
        name, inputs, size = self.name, self.inputs, -(-size // self.stride)
        return [
            Layer(
                f"{name}/depthwise", 3, self.stride, inputs, inputs, size, groups=inputs, norm=True
            ),
            Layer(f"{name}/pointwise", 1, 1, inputs, self.outputs, size, norm=True),
        ]

    def module(self, parts: Parts, name: str) -> nn.Module:
        return SeparableModule(parts, self, name=name)


class SeparableModule(nn.Module):
    """See `Separable`."""

    parts: Parts
    spec: Separable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, parts = self.spec, self.parts
        x = parts.depthwise(3, spec.stride, name="depthwise")(x)
        x = parts.act(parts.norm(name="depthwise_norm")(x))
        x = parts.conv(spec.outputs, 1, name="pointwise")(x)
        return parts.act(parts.norm(name="pointwise_norm")(x))


def separable(row: SeparableStage, width: float, **block) -> Separable:
    """A block of `row`, which has no skip; `block`: its name, stride, inputs and survival."""
    return Separable(outputs=scaling.round_filters(row.filters, width), skip=False, **block)


def v1(
    coefficients: Coefficients,
    num_classes: int = 1000,
    stem_stride: int = 2,
    survival_probability: float = 1.0,
) -> Architecture:
    """MobileNetV1, scaled and rounded. Survival means nothing here: no block has a skip."""
    width = coefficients.width
    stem = Stem(scaling.round_filters(STEM_FILTERS, width), stride=stem_stride)
    make = functools.partial(separable, width=width)
    depth = coefficients.depth
    return Architecture(
        resolution=coefficients.resolution,
        stem=stem,
        stages=scale_stages(V1_STAGES, make, stem.filters, depth, survival_probability),
        head_filters=0,
        num_classes=num_classes,
        activation=nn.relu6,
    )


def v2(
    coefficients: Coefficients,
    num_classes: int = 1000,
    stem_stride: int = 2,
    survival_probability: float = 1.0,
) -> Architecture:
    """MobileNetV2, scaled and rounded. Its head is never narrower than the base's (section 5)."""
    width = coefficients.width
    stem = Stem(scaling.round_filters(STEM_FILTERS, width), stride=stem_stride)
    rounded = functools.partial(scaling.round_filters, width=width)
    make = functools.partial(block_of, rounded=rounded, squeeze_ratio=0)
    depth = coefficients.depth
    return Architecture(
        resolution=coefficients.resolution,
        stem=stem,
        stages=scale_stages(V2_STAGES, make, stem.filters, depth, survival_probability),
        head_filters=scaling.round_filters(V2_HEAD_FILTERS, max(1.0, width)),
        num_classes=num_classes,
        activation=nn.relu6,
    )
