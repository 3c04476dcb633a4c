"""Inverted bottlenecks: the blocks of EfficientNet and MobileNetV2, and their rows in a table.

Sources: tensorflow/tpu models/official/efficientnet/efficientnet_model.py (MBConvBlock, and
MBConvBlockWithoutDepthwise, EdgeTPU's fused one), google/automl efficientnetv2/effnetv2_model.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from effnet_jax.models import layers
from effnet_jax.models.network import Block, Parts
from effnet_jax.scaling import Layer


class Stage(NamedTuple):
    """A row of a table: `repeats` MBConv blocks, of which only the first has the stride."""

    kernel: int
    stride: int
    expand: int
    filters: int
    repeats: int


class FusedStage(NamedTuple):
    """The same of FusedMBConv blocks.

    Attributes:
      expand_of: filters that `expand` multiplies; None: the block's inputs.
      skip: whether the blocks have skips at all.
    """

    kernel: int
    stride: int
    expand: int
    filters: int
    repeats: int
    expand_of: int | None = None
    skip: bool = True


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
        rows.append(
            Layer(
                f"{name}/depthwise",
                self.kernel,
                self.stride,
                inside,
                inside,
                size,
                groups=inside,
                norm=True,
            )
        )
        if self.squeezed:
            gate = f"{name}/squeeze_excite"
            rows += [
                Layer(f"{gate}/reduce", 1, 1, inside, self.squeezed, 1, bias=True),
                Layer(f"{gate}/expand", 1, 1, self.squeezed, inside, 1, bias=True),
            ]
        return [*rows, Layer(f"{name}/project", 1, 1, inside, self.outputs, size, norm=True)]

    def module(self, parts: Parts, name: str) -> nn.Module:
        return MBConvModule(parts, self, name=name)


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

    def module(self, parts: Parts, name: str) -> nn.Module:
        return FusedMBConvModule(parts, self, name=name)


class SqueezeExcite(nn.Module):
    """Gates each channel by a small network of the pooled features (arXiv 1709.01507)."""

    parts: Parts
    squeezed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = layers.spatial_mean(x)
        gate = self.parts.conv(self.squeezed, 1, use_bias=True, name="reduce")(gate)
        gate = self.parts.act(gate)
        gate = self.parts.conv(x.shape[-1], 1, use_bias=True, name="expand")(gate)
        return x * nn.sigmoid(gate)


class MBConvModule(nn.Module):
    """See `MBConv`."""

    parts: Parts
    spec: MBConv

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, parts, inputs = self.spec, self.parts, x
        if spec.expanded != spec.inputs:
            x = parts.conv(spec.expanded, 1, name="expand")(x)
            x = parts.act(parts.norm(name="expand_norm")(x))
        x = parts.depthwise(spec.kernel, spec.stride, name="depthwise")(x)
        x = parts.act(parts.norm(name="depthwise_norm")(x))
        if spec.squeezed:
            x = SqueezeExcite(parts, spec.squeezed, name="squeeze_excite")(x)
        x = parts.conv(spec.outputs, 1, name="project")(x)
        x = parts.norm(name="project_norm")(x)
        return _add_skip(self, x, inputs, train)


class FusedMBConvModule(nn.Module):
    """See `FusedMBConv`."""

    parts: Parts
    spec: FusedMBConv

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, parts, inputs = self.spec, self.parts, x
        if spec.expanded == spec.inputs:
            x = parts.conv(spec.outputs, spec.kernel, spec.stride, name="project")(x)
            x = parts.act(parts.norm(name="project_norm")(x))
        else:
            x = parts.conv(spec.expanded, spec.kernel, spec.stride, name="expand")(x)
            x = parts.act(parts.norm(name="expand_norm")(x))
            x = parts.conv(spec.outputs, 1, name="project")(x)
            x = parts.norm(name="project_norm")(x)
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
    row: Stage | FusedStage,
    rounded: Callable[[int], int],
    squeeze_ratio: float,
    inputs: int,
    **block,
) -> Block:
    """A block of `row`.

    Args:
      rounded: filters of the table -> scaled and rounded.
      squeeze_ratio: of MBConv's squeeze-excitation, to the block's inputs; 0: without.
      inputs: channels before the block.
      **block: its name, stride and survival.
    """
    block |= {"kernel": row.kernel, "inputs": inputs, "outputs": rounded(row.filters)}
    if isinstance(row, FusedStage):
        expanded = row.expand * (rounded(row.expand_of) if row.expand_of else inputs)
        return FusedMBConv(expanded=expanded, skip=row.skip, **block)
    squeezed = max(1, int(inputs * squeeze_ratio)) if squeeze_ratio else 0
    return MBConv(expanded=row.expand * inputs, squeezed=squeezed, **block)
