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
from effnet_jax.models.network import Base, Block, Function, LayerFactories, Stage
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
    """A block of `row`, without a skip; `block`: its name, stride, inputs and survival."""
    return Separable(outputs=rounded(row.filters), skip=False, **block)


_mobilenet = functools.partial(Base, activation=nn.relu6, dropout=0.2)
V1 = _mobilenet(stages=V1_STAGES, block=separable)
# Its head is never narrower than the base's (section 5).
V2 = _mobilenet(stages=V2_STAGES, block=block_of, head_filters=1280, narrow_head=False)
