"""EfficientNet V1 (arXiv 1905.11946, Table 1): one table of stages, one row per variant.

Source of every figure here: tensorflow/tpu models/official/efficientnet, efficientnet_builder.py
and efficientnet_model.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from effnet_jax import scaling
from effnet_jax.models import layers
from effnet_jax.models.network import Architecture, Block, Parts, Stem, scale_stages
from effnet_jax.models.operations import swish
from effnet_jax.scaling import Coefficients, Layer


class Stage(NamedTuple):
    """A row of Table 1: `repeats` MBConv blocks, of which only the first has the stride."""

    kernel: int
    stride: int
    expand: int
    filters: int
    repeats: int


STAGES = (
    Stage(kernel=3, stride=1, expand=1, filters=16, repeats=1),
    Stage(kernel=3, stride=2, expand=6, filters=24, repeats=2),
    Stage(kernel=5, stride=2, expand=6, filters=40, repeats=2),
    Stage(kernel=3, stride=2, expand=6, filters=80, repeats=3),
    Stage(kernel=5, stride=1, expand=6, filters=112, repeats=3),
    Stage(kernel=5, stride=2, expand=6, filters=192, repeats=4),
    Stage(kernel=3, stride=1, expand=6, filters=320, repeats=1),
)
STEM_FILTERS = 32
HEAD_FILTERS = 1280
SQUEEZE_RATIO = 0.25  # Of the block's input filters, before the expansion.


class Variant(NamedTuple):
    """A published model: its coefficients, and the dropout that it was trained with."""

    width: float
    depth: float
    resolution: int
    dropout: float


VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 0.2),  # Parameters 5,288,548; top-1 77.1 (AutoAugment).
    "b1": Variant(1.0, 1.1, 240, 0.2),  # 7,794,184; 79.1
    "b2": Variant(1.1, 1.2, 260, 0.3),  # 9,109,994; 80.1
    "b3": Variant(1.2, 1.4, 300, 0.3),  # 12,233,232; 81.6
    "b4": Variant(1.4, 1.8, 380, 0.4),  # 19,341,616; 82.9
    "b5": Variant(1.6, 2.2, 456, 0.4),  # 30,389,784; 83.6
    "b6": Variant(1.8, 2.6, 528, 0.5),  # 43,040,704; 84.0
    "b7": Variant(2.0, 3.1, 600, 0.5),  # 66,347,960; 84.3
    "b8": Variant(2.2, 3.6, 672, 0.5),  # 87,413,142; 85.5 (AdvProp)
    "l2": Variant(4.3, 5.3, 800, 0.5),  # 480,309,308; 88.4 (NoisyStudent, extra data)
}


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
        if not spec.has_skip:
            return x
        if train:
            x = layers.stochastic_depth(x, spec.survival, self.make_rng("stochastic_depth"))
        return x + inputs


def mbconv(row: Stage, width: float, squeeze_ratio: float, inputs: int, **block) -> MBConv:
    """A block of `row`; `block`: its name, stride and survival. A ratio of 0: no squeeze-excite."""
    return MBConv(
        kernel=row.kernel,
        inputs=inputs,
        expanded=inputs * row.expand,
        outputs=scaling.round_filters(row.filters, width),
        squeezed=max(1, int(inputs * squeeze_ratio)) if squeeze_ratio else 0,
        **block,
    )


def architecture(
    coefficients: Coefficients,
    num_classes: int = 1000,
    stem_stride: int = 2,
    survival_probability: float = 0.8,
) -> Architecture:
    """Scales and rounds the table."""
    width = coefficients.width
    stem = Stem(scaling.round_filters(STEM_FILTERS, width), stride=stem_stride)
    make = functools.partial(mbconv, width=width, squeeze_ratio=SQUEEZE_RATIO)
    return Architecture(
        resolution=coefficients.resolution,
        stem=stem,
        stages=scale_stages(STAGES, make, stem.filters, coefficients.depth, survival_probability),
        head_filters=scaling.round_filters(HEAD_FILTERS, width),
        num_classes=num_classes,
        activation=swish,
    )
