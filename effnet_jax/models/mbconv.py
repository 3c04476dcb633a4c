"""Inverted bottlenecks: the blocks of EfficientNet and MobileNetV2.

Sources: tensorflow/tpu models/official/efficientnet/efficientnet_model.py (MBConvBlock, and
MBConvBlockWithoutDepthwise, EdgeTPU's fused one), google/automl efficientnetv2/effnetv2_model.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from effnet_jax.models import fused, operations
from effnet_jax.models.network import Block, Function, LayerFactories, Stage
from effnet_jax.scaling import Layer


class Gate(nn.Module):
    """Squeeze-excitation's gate for pooled features [N, 1, 1, C] (arXiv 1709.01507)."""

    factories: LayerFactories
    squeezed: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        gate = self.factories.conv(self.squeezed, 1, use_bias=True, name="reduce")(pooled)
        gate = self.factories.act(gate)
        gate = self.factories.conv(pooled.shape[-1], 1, use_bias=True, name="expand")(gate)
        return nn.sigmoid(gate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBConv(Block):
    """Inverted bottleneck: expand 1x1, depthwise, squeeze-excite, project 1x1, identity skip."""

    kernel: int  # Size of the depthwise kernel.
    expanded: int  # Channels inside; if equal to `inputs`, there is no expansion.
    squeezed: int  # Channels inside squeeze-excitation; 0: no squeeze-excitation.

    def layers(self, size: int) -> list[Layer]:
        name, kernel, inside, end = self.name, self.kernel, self.expanded, -(-size // self.stride)
        rows = [
            Layer(f"{name}/expand", 1, 1, self.inputs, inside, size, norm=True),
            Layer(f"{name}/depthwise", kernel, self.stride, inside, inside, end, inside, norm=True),
            Layer(f"{name}/squeeze_excite/reduce", 1, 1, inside, self.squeezed, 1, bias=True),
            Layer(f"{name}/squeeze_excite/expand", 1, 1, self.squeezed, inside, 1, bias=True),
            Layer(f"{name}/project", 1, 1, inside, self.outputs, end, norm=True),
        ]
        if not self.squeezed:
            del rows[2:4]
        return rows if inside != self.inputs else rows[1:]

    def apply(self, make: LayerFactories, x: jax.Array, drop: Function) -> jax.Array:
        gate = Gate(make, self.squeezed, name="squeeze_excite") if self.squeezed else None
        if make.fused:
            y = fused.inside(make.fused, make.act, self, gate, x)
        else:
            y = self._inside(make, gate, x)
        y = make.norm(name="project_norm", **make.last_norm(self))(y)
        return drop(y) + x if self.has_skip else y

    def _inside(self, make: LayerFactories, gate: Function | None, x: jax.Array) -> jax.Array:
        """Computes the block from its input to the output of the projection."""
        if self.expanded != self.inputs:
            x = make.act(make.conv_norm(x, "expand", 1, 1, self.expanded))
        x = make.depthwise(self.kernel, self.stride, name="depthwise")(x)
        x = make.act(make.norm(name="depthwise_norm")(x))
        if gate:
            x = x * gate(operations.spatial_mean(x))
        return make.conv(self.outputs, 1, 1, name="project")(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedMBConv(Block):
    """MBConv whose expansion and depthwise convolution are one: expand kxk, project 1x1, skip.

    Without expansion it is a single kxk convolution, `project`, with an activation.
    """

    kernel: int  # Kernel size of the convolution that has the stride.
    expanded: int  # Channels inside; if equal to `inputs`, there is no expansion.

    def layers(self, size: int) -> list[Layer]:
        name, kernel, stride, inside = self.name, self.kernel, self.stride, self.expanded
        end = -(-size // stride)
        if inside == self.inputs:
            return [Layer(f"{name}/project", kernel, stride, inside, self.outputs, end, norm=True)]
        return [
            Layer(f"{name}/expand", kernel, stride, self.inputs, inside, end, norm=True),
            Layer(f"{name}/project", 1, 1, inside, self.outputs, end, norm=True),
        ]

    def apply(self, make: LayerFactories, x: jax.Array, drop: Function) -> jax.Array:
        if self.expanded == self.inputs:  # No scale of 0 here: behind a ReLU it would stay 0.
            y = make.act(make.conv_norm(x, "project", self.kernel, self.stride, self.outputs))
        else:
            y = make.act(make.conv_norm(x, "expand", self.kernel, self.stride, self.expanded))
            y = make.conv_norm(y, "project", 1, 1, self.outputs, **make.last_norm(self))
        return drop(y) + x if self.has_skip else y


def block_of(
    row: Stage, rounded: Callable[[int], int], inputs: int, squeeze_ratio: float = 0, **block: Any
) -> Block:
    """Returns the MBConv or FusedMBConv block of `row`; see `Base.block`.

    `squeeze_ratio` is the channels inside an MBConv's squeeze-excitation divided by `inputs`; 0
    means no squeeze-excitation.
    """
    squeezed = max(1, int(inputs * squeeze_ratio)) if squeeze_ratio else 0
    kind = FusedMBConv if row.fused else functools.partial(MBConv, squeezed=squeezed)
    return kind(
        kernel=row.kernel,
        inputs=inputs,
        expanded=row.expand * (rounded(row.expand_of) if row.expand_of else inputs),
        outputs=rounded(row.filters),
        skip=row.skip,
        **block,
    )
