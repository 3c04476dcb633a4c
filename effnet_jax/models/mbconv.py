"""Inverted bottlenecks: the blocks of EfficientNet and MobileNetV2.

Sources: tensorflow/tpu models/official/efficientnet/efficientnet_model.py (MBConvBlock, and
MBConvBlockWithoutDepthwise, EdgeTPU's fused one), google/automl efficientnetv2/effnetv2_model.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from effnet_jax.models import layers, operations
from effnet_jax.models.network import Block, LayerFactories, Stage
from effnet_jax.scaling import Layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBConv(Block):
    """Inverted bottleneck: expand 1x1, depthwise, squeeze-excite, project 1x1, identity skip.

    Attributes:
      kernel: of the depthwise convolution.
      expanded: channels inside; no expansion where they are the block's inputs.
      squeezed: channels inside squeeze-excitation; 0 for none.
    """

    kernel: int
    expanded: int
    squeezed: int

    def layers(self, size: int) -> list[Layer]:
        name, inside, rows = self.name, self.expanded, []
        if inside != self.inputs:
            rows.append(Layer(f"{name}/expand", 1, 1, self.inputs, inside, size, norm=True))
        size = -(-size // self.stride)
        depthwise = f"{name}/depthwise", self.kernel, self.stride, inside, inside, size
        rows.append(Layer(*depthwise, groups=inside, norm=True))
        if self.squeezed:
            gate = f"{name}/squeeze_excite"
            rows += [
                Layer(f"{gate}/reduce", 1, 1, inside, self.squeezed, 1, bias=True),
                Layer(f"{gate}/expand", 1, 1, self.squeezed, inside, 1, bias=True),
            ]
        return [*rows, Layer(f"{name}/project", 1, 1, inside, self.outputs, size, norm=True)]

    def module(self, factories: LayerFactories, name: str) -> nn.Module:
        return MBConvModule(factories, self, name=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedMBConv(Block):
    """MBConv whose expansion and depthwise convolution are one: expand kxk, project 1x1, skip.

    Without expansion it is a single kxk convolution, `project`, then with an activation.

    Attributes:
      kernel: of the convolution that has the stride.
      expanded: channels inside; no expansion where they are the block's inputs.
    """

    kernel: int
    expanded: int

    def layers(self, size: int) -> list[Layer]:
        expand, project = f"{self.name}/expand", f"{self.name}/project"
        kernel, stride, inside = self.kernel, self.stride, self.expanded
        size = -(-size // stride)
        if inside == self.inputs:
            return [Layer(project, kernel, stride, inside, self.outputs, size, norm=True)]
        return [
            Layer(expand, kernel, stride, self.inputs, inside, size, norm=True),
            Layer(project, 1, 1, inside, self.outputs, size, norm=True),
        ]

    def module(self, factories: LayerFactories, name: str) -> nn.Module:
        return FusedMBConvModule(factories, self, name=name)


class SqueezeExcite(nn.Module):
    """Gates each channel by a small network of the pooled features (arXiv 1709.01507)."""

    factories: LayerFactories
    squeezed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = operations.spatial_mean(x)
        gate = self.factories.conv(self.squeezed, 1, use_bias=True, name="reduce")(gate)
        gate = self.factories.act(gate)
        gate = self.factories.conv(x.shape[-1], 1, use_bias=True, name="expand")(gate)
        return x * nn.sigmoid(gate)


class MBConvModule(nn.Module):
    """See `MBConv`."""

    factories: LayerFactories
    spec: MBConv

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, make, inputs = self.spec, self.factories, x
        if spec.expanded != spec.inputs:
            x = make.conv(spec.expanded, 1, name="expand")(x)
            x = make.act(make.norm(name="expand_norm")(x))
        x = make.depthwise(spec.kernel, spec.stride, name="depthwise")(x)
        x = make.act(make.norm(name="depthwise_norm")(x))
        if spec.squeezed:
            x = SqueezeExcite(make, spec.squeezed, name="squeeze_excite")(x)
        x = make.conv(spec.outputs, 1, name="project")(x)
        x = make.norm(name="project_norm")(x)
        return _add_skip(self, x, inputs, train)


class FusedMBConvModule(nn.Module):
    """See `FusedMBConv`."""

    factories: LayerFactories
    spec: FusedMBConv

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, make, inputs = self.spec, self.factories, x
        if spec.expanded == spec.inputs:
            x = make.conv(spec.outputs, spec.kernel, spec.stride, name="project")(x)
            x = make.act(make.norm(name="project_norm")(x))
        else:
            x = make.conv(spec.expanded, spec.kernel, spec.stride, name="expand")(x)
            x = make.act(make.norm(name="expand_norm")(x))
            x = make.conv(spec.outputs, 1, name="project")(x)
            x = make.norm(name="project_norm")(x)
        return _add_skip(self, x, inputs, train)


def _add_skip(
    module: MBConvModule | FusedMBConvModule, x: jax.Array, inputs: jax.Array, train: bool
) -> jax.Array:
    """Adds the block's inputs to its outputs where it has a skip."""
    spec = module.spec
    if not spec.has_skip:
        return x
    if train:
        x = layers.stochastic_depth(x, spec.survival, module.make_rng("stochastic_depth"))
    return x + inputs


def block_of(
    row: Stage, rounded: Callable[[int], int], inputs: int, squeeze_ratio: float = 0, **block: Any
) -> Block:
    """The MBConv or FusedMBConv block of `row`.

    Args:
      rounded: filters of the table -> scaled and rounded.
      inputs: channels before the block.
      squeeze_ratio: of MBConv's squeeze-excitation, to the block's inputs; 0: without.
      **block: its name, stride and survival.
    """
    expanded = row.expand * (rounded(row.expand_of) if row.expand_of else inputs)
    block |= {"kernel": row.kernel, "inputs": inputs, "outputs": rounded(row.filters)}
    block |= {"expanded": expanded, "skip": row.skip}
    if row.fused:
        return FusedMBConv(**block)
    return MBConv(squeezed=max(1, int(inputs * squeeze_ratio)) if squeeze_ratio else 0, **block)
