"""MobileNetV1 (arXiv 1704.04861, Table 1) and V2 (arXiv 1801.04381, Table 2).

Two of the base networks that the EfficientNet paper scales in its Table 3. Both use ReLU6, as the
authors' code does (tensorflow/models research/slim/nets, mobilenet_v1.py and mobilenet/).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from effnet_jax.models.mbconv import block_of
from effnet_jax.models.network import Base, Block, LayerFactories, Stage
from effnet_jax.scaling import Layer

# 4,231,976 parameters and 569 M multiply-adds at 224 pixels. The paper prints stride 2 in its last
# row, whose sizes and counts are those of stride 1.
V1_STAGES = (
    Stage(stride=1, filters=64, repeats=1),
    Stage(stride=2, filters=128, repeats=2),
    Stage(stride=2, filters=256, repeats=2),
    Stage(stride=2, filters=512, repeats=6),
    Stage(stride=2, filters=1024, repeats=2),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Block):
    """Depthwise 3x3, then pointwise, each with normalisation and activation."""

    def layers(self, size: int) -> list[Layer]:
        name, inputs, size = self.name, self.inputs, -(-size // self.stride)
        depthwise = f"{name}/depthwise", 3, self.stride, inputs, inputs, size
        return [
            Layer(*depthwise, groups=inputs, norm=True),
            Layer(f"{name}/pointwise", 1, 1, inputs, self.outputs, size, norm=True),
        ]

    def module(self, factories: LayerFactories, name: str) -> nn.Module:
        return SeparableModule(factories, self, name=name)


class SeparableModule(nn.Module):
    """See `Separable`."""

    factories: LayerFactories
    spec: Separable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, make = self.spec, self.factories
        x = make.depthwise(3, spec.stride, name="depthwise")(x)
        x = make.act(make.norm(name="depthwise_norm")(x))
        x = make.conv(spec.outputs, 1, name="pointwise")(x)
        return make.act(make.norm(name="pointwise_norm")(x))


def separable(row: Stage, rounded: Callable[[int], int], **block: Any) -> Separable:
    """A block of `row`, without a skip; `block`: its name, stride, inputs and survival."""
    return Separable(outputs=rounded(row.filters), skip=False, **block)


_mobilenet = functools.partial(Base, activation=nn.relu6, dropout=0.2)
V1 = _mobilenet(stages=V1_STAGES, block=separable)
# Its head is never narrower than the base's (section 5).
V2 = _mobilenet(stages=V2_STAGES, block=block_of, head_filters=1280, narrow_head=False)
