"""EfficientNet V1 (arXiv 1905.11946, Table 1): one table of stages, one row per variant.

Source of every figure here: tensorflow/tpu models/official/efficientnet, efficientnet_builder.py
and efficientnet_model.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effnet_jax import scaling
from effnet_jax.models import layers
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


@dataclasses.dataclass(frozen=True)
class Block:
    """One MBConv block after scaling and rounding.

    Attributes:
      name: slash-joined module path.
      kernel, stride: of the depthwise convolution.
      inputs, expanded, outputs: channels before, inside and after the block.
      squeezed: channels inside squeeze-excitation.
      survival: probability that the block is kept for a sample in training. Used only where the
        block has an identity skip.
    """

    name: str
    kernel: int
    stride: int
    inputs: int
    expanded: int
    outputs: int
    squeezed: int
    survival: float

    @property
    def has_skip(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The scaled network as a table: what the module builds and the counts are taken from."""

    resolution: int
    stem_filters: int
    stem_stride: int
    stages: tuple[tuple[Block, ...], ...]
    head_filters: int
    num_classes: int

    @property
    def total_stride(self) -> int:
        strides = [block.stride for blocks in self.stages for block in blocks]
        return functools.reduce(lambda total, stride: total * stride, strides, self.stem_stride)

    def layers(self) -> list[Layer]:
        """Every convolution and dense layer in order, named as in the parameter tree."""
        size = -(-self.resolution // self.stem_stride)  # SAME padding rounds up.
        rows = [Layer("stem/conv", 3, self.stem_stride, 3, self.stem_filters, size, norm=True)]
        for block in (block for blocks in self.stages for block in blocks):
            name, inside = block.name, block.expanded
            if inside != block.inputs:
                rows.append(Layer(f"{name}/expand", 1, 1, block.inputs, inside, size, norm=True))
            size = -(-size // block.stride)
            rows += [
                Layer(
                    f"{name}/depthwise",
                    block.kernel,
                    block.stride,
                    inside,
                    inside,
                    size,
                    groups=inside,
                    norm=True,
                ),
                Layer(f"{name}/squeeze_excite/reduce", 1, 1, inside, block.squeezed, 1, bias=True),
                Layer(f"{name}/squeeze_excite/expand", 1, 1, block.squeezed, inside, 1, bias=True),
                Layer(f"{name}/project", 1, 1, inside, block.outputs, size, norm=True),
            ]
        last = self.stages[-1][-1].outputs
        return [
            *rows,
            Layer("head/conv", 1, 1, last, self.head_filters, size, norm=True),
            Layer("classifier", 1, 1, self.head_filters, self.num_classes, 1, bias=True),
        ]


def architecture(
    coefficients: Coefficients,
    num_classes: int = 1000,
    stem_stride: int = 2,
    survival_probability: float = 0.8,
) -> Architecture:
    """Scales and rounds the table.

    Block i of n survives with probability 1 - (1 - survival_probability) * i / n, i counted from 0
    over the whole network.
    """
    width, depth = coefficients.width, coefficients.depth
    repeats = [scaling.round_repeats(stage.repeats, depth) for stage in STAGES]
    inputs = stem_filters = scaling.round_filters(STEM_FILTERS, width)
    stages, index = [], 0
    for number, (stage, count) in enumerate(zip(STAGES, repeats, strict=True), 1):
        outputs = scaling.round_filters(stage.filters, width)
        blocks = []
        for position in range(count):
            blocks.append(
                Block(
                    name=f"stage{number}/block{position + 1}",
                    kernel=stage.kernel,
                    stride=stage.stride if position == 0 else 1,
                    inputs=inputs,
                    expanded=inputs * stage.expand,
                    outputs=outputs,
                    squeezed=max(1, int(inputs * SQUEEZE_RATIO)),
                    survival=1 - (1 - survival_probability) * index / sum(repeats),
                )
            )
            inputs, index = outputs, index + 1
        stages.append(tuple(blocks))
    return Architecture(
        resolution=coefficients.resolution,
        stem_filters=stem_filters,
        stem_stride=stem_stride,
        stages=tuple(stages),
        head_filters=scaling.round_filters(HEAD_FILTERS, width),
        num_classes=num_classes,
    )


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, activation: the stem and the head."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    filters: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.filters, self.kernel, self.stride, name="conv")(x)
        return swish(self.norm(name="norm")(x))


class SqueezeExcite(nn.Module):
    """Gates each channel by a small network of the pooled features (arXiv 1709.01507)."""

    conv: Callable[..., nn.Module]
    squeezed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = layers.spatial_mean(x)
        gate = self.conv(self.squeezed, 1, use_bias=True, name="reduce")(gate)
        gate = self.conv(x.shape[-1], 1, use_bias=True, name="expand")(swish(gate))
        return x * nn.sigmoid(gate)


class MBConv(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise, squeeze-excite, project 1x1, identity skip."""

    conv: Callable[..., nn.Module]
    depthwise: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    spec: Block

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, inputs = self.spec, x
        if spec.expanded != spec.inputs:
            x = self.conv(spec.expanded, 1, name="expand")(x)
            x = swish(self.norm(name="expand_norm")(x))
        x = self.depthwise(spec.kernel, spec.stride, name="depthwise")(x)
        x = swish(self.norm(name="depthwise_norm")(x))
        x = SqueezeExcite(self.conv, spec.squeezed, name="squeeze_excite")(x)
        x = self.conv(spec.outputs, 1, name="project")(x)
        x = self.norm(name="project_norm")(x)
        if not spec.has_skip:
            return x
        if train:
            x = layers.stochastic_depth(x, spec.survival, self.make_rng("stochastic_depth"))
        return x + inputs


class Blocks(nn.Module):
    """One stage: its blocks in order."""

    block: Callable[..., nn.Module]
    specs: Sequence[Block]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for spec in self.specs:
            x = self.block(spec=spec, name=spec.name.rpartition("/")[2])(x, train)
        return x


class EfficientNet(nn.Module):
    """The network of an `Architecture`.

    Attributes:
      architecture: the scaled table.
      dropout: rate between pooling and classifier.
      momentum, epsilon: of batch normalisation; momentum is the fraction of the running value kept.
      dtype: of the computation; parameters and statistics stay float32.
      depthwise_conv: the operation of the depthwise layers, `(x, kernel, stride) -> y`.
    """

    architecture: Architecture
    dropout: float = 0.2
    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32
    depthwise_conv: Callable[..., jax.Array] = layers.depthwise_conv

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs the network.

        Args:
          images: normalised images, [N, H, W, 3].
          train: batch statistics, dropout and stochastic depth are on. Needs the random streams
            "dropout" and "stochastic_depth", and "batch_stats" mutable.

        Returns:
          Logits [N, num_classes] in float32, and the features by name: stem, stage1 to stage7 and
          head as [N, h, w, C], pre_logits as [N, C].
        """
        spec = self.architecture
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        depthwise = functools.partial(
            layers.DepthwiseConv, dtype=self.dtype, operation=self.depthwise_conv
        )
        norm = functools.partial(
            layers.BatchNorm, train=train, momentum=self.momentum, epsilon=self.epsilon
        )
        block = functools.partial(MBConv, conv=conv, depthwise=depthwise, norm=norm)

        features = {}
        x = images.astype(self.dtype)
        x = ConvNormAct(conv, norm, spec.stem_filters, 3, spec.stem_stride, name="stem")(x)
        features["stem"] = x
        for number, specs in enumerate(spec.stages, 1):
            x = Blocks(block, specs, name=f"stage{number}")(x, train)
            features[f"stage{number}"] = x
        x = ConvNormAct(conv, norm, spec.head_filters, 1, 1, name="head")(x)
        features["head"] = x
        x = layers.spatial_mean(x)[:, 0, 0, :]
        features["pre_logits"] = x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = layers.Dense(spec.num_classes, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32), features
