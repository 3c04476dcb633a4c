"""What all families share: a network is a table of blocks, and one module builds any such table.

A family's file holds its kinds of block and one `Base` for each base network: its table, and what
comes with it. `Base.architecture` scales the table into an `Architecture`. A kind of block is a
`Block`, which knows its cost, and the Flax module that it makes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effnet_jax import scaling
from effnet_jax.models import layers, operations
from effnet_jax.scaling import Coefficients, Layer


@dataclasses.dataclass(frozen=True)
class LayerFactories:
    """The layers that blocks are made of, with their settings bound, and the activation.

    Attributes:
      conv: `(filters, kernel, stride=1, use_bias=False, name=...)` -> module.
      depthwise: `(kernel, stride=1, name=...)` -> module.
      norm: `(name=...)` -> module.
      act: any shape -> the same shape.
    """

    conv: Callable[..., nn.Module]
    depthwise: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    act: Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One block after scaling and rounding; each kind of block adds what it needs.

    Attributes:
      name: slash-joined module path.
      stride: of the whole block.
      inputs, outputs: channels before and after the block.
      survival: probability that the block is kept for a sample in training. Used only where the
        block has a skip.
      skip: False: no skip, whatever the shapes.
    """

    name: str
    stride: int
    inputs: int
    outputs: int
    survival: float
    skip: bool = True

    @property
    def has_skip(self) -> bool:
        """Whether the input is added to the output as it is."""
        return self.skip and self.stride == 1 and self.inputs == self.outputs

    def layers(self, size: int) -> list[Layer]:
        """Its convolutions in order, for an input of `size` pixels a side."""
        raise NotImplementedError

    def module(self, factories: LayerFactories, name: str) -> nn.Module:
        """The Flax module: `(x [N, h, w, inputs], train) -> [N, h / stride, w / stride, outputs]`.

        h / stride is rounded up.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution; `pool`: a 3x3 max pool with stride 2 follows."""

    filters: int
    kernel: int = 3
    stride: int = 2
    pool: bool = False


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The scaled network as a table: what the module builds and the counts are taken from.

    Attributes:
      resolution: side of the square input image, in pixels.
      stem: the first layer.
      stages: blocks by stage.
      head_filters: of the 1x1 convolution before the pooling; 0 where there is none.
      num_classes: outputs of the classifier.
      activation: after every normalisation but those that end a residual branch or a projection.
    """

    resolution: int
    stem: Stem
    stages: tuple[tuple[Block, ...], ...]
    head_filters: int
    num_classes: int
    activation: Callable[[jax.Array], jax.Array]

    @property
    def total_stride(self) -> int:
        strides = [block.stride for blocks in self.stages for block in blocks]
        return self.stem.stride * (2 if self.stem.pool else 1) * math.prod(strides)

    def layers(self) -> list[Layer]:
        """Every convolution and dense layer in order, named as in the parameter tree."""
        stem = self.stem
        size = -(-self.resolution // stem.stride)  # Either padding rounds up.
        rows = [Layer("stem/conv", stem.kernel, stem.stride, 3, stem.filters, size, norm=True)]
        if stem.pool:
            size = -(-size // 2)
        for block in (block for blocks in self.stages for block in blocks):
            rows += block.layers(size)
            size = -(-size // block.stride)
        channels = self.stages[-1][-1].outputs
        if self.head_filters:
            rows.append(Layer("head/conv", 1, 1, channels, self.head_filters, size, norm=True))
            channels = self.head_filters
        return [*rows, Layer("classifier", 1, 1, channels, self.num_classes, 1, bias=True)]


class Stage(NamedTuple):
    """A row of a base network's table: `repeats` blocks, of which only the first has the stride.

    A kind of block without an expansion, or with a fixed kernel, leaves those at their defaults.

    Attributes:
      filters: of the blocks' outputs; of a ResNet's, of their 3x3 convolutions.
      expand: channels inside a block over its inputs.
      expand_of: filters that `expand` multiplies; None: the block's inputs.
      fused: whether expansion and depthwise convolution are one; see `mbconv.FusedMBConv`.
      skip: whether the blocks have skips at all.
    """

    stride: int
    filters: int
    repeats: int
    kernel: int = 3
    expand: int = 1
    expand_of: int | None = None
    fused: bool = False
    skip: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A base network: its unscaled table, and the values in `config.model` that come with it.

    Attributes:
      stages: rows of the table.
      block: `(row, round_filters, name=, stride=, inputs=, survival=)` -> a block of the row, where
        `round_filters` scales and rounds the table's filters.
      activation: after every normalisation but a projection's, and inside squeeze-excitation.
      stem, head_filters: see `Architecture`.
      fixed_ends: whether the stem, the head, and the repeats of the first and last stage are not
        scaled.
      narrow_head: whether a width below 1 also scales the head.
      least: fraction of the scaled filters that rounding has to leave; see scaling.round_filters.
      resolution: of the unscaled network, in pixels.
      dropout: before the classifier; None: grows with phi (`scaling.dropout_rate`).
      survival_probability: of the last block; 1: no stochastic depth.
      batch_norm_momentum: fraction of the running statistics that is kept.
      normalization: of the pixels, by its name in `config.NORMALIZATIONS`.
    """

    stages: tuple[Stage, ...]
    block: Callable[..., Block]
    activation: Callable[[jax.Array], jax.Array]
    stem: Stem = Stem(filters=32)
    head_filters: int = 0
    fixed_ends: bool = False
    narrow_head: bool = True
    least: float = 0.9
    resolution: int = 224
    dropout: float | None = None
    survival_probability: float = 1.0
    batch_norm_momentum: float = 0.99
    normalization: str = "imagenet"

    def architecture(
        self,
        coefficients: Coefficients,
        num_classes: int = 1000,
        stem_stride: int = 2,
        survival_probability: float | None = None,
    ) -> Architecture:
        """Scales and rounds the table.

        Args:
          coefficients: width, depth and resolution.
          num_classes: outputs of the classifier.
          stem_stride: 1: the stem is a 3x3 convolution with stride 1, for small images; 2: the
            base network's own.
          survival_probability: of the last block; by default the base network's.
        """
        width = 1.0 if self.fixed_ends else coefficients.width
        filters = scaling.round_filters(self.stem.filters, width, least=self.least)
        own = dataclasses.replace(self.stem, filters=filters)
        head, head_width = self.head_filters, width if self.narrow_head else max(1.0, width)
        return Architecture(
            resolution=coefficients.resolution,
            stem=Stem(filters, stride=1) if stem_stride == 1 else own,
            stages=self._scaled_stages(coefficients, filters, survival_probability),
            head_filters=head and scaling.round_filters(head, head_width, least=self.least),
            num_classes=num_classes,
            activation=self.activation,
        )

    def _scaled_stages(
        self, coefficients: Coefficients, inputs: int, survival_probability: float | None
    ) -> tuple[tuple[Block, ...], ...]:
        """The blocks of every row, whose number is scaled and rounded up, after `inputs` channels.

        Block i of n survives with probability 1 - (1 - survival_probability) * i / n, i counted
        from 0 over the whole network.
        """
        rounded = functools.partial(
            scaling.round_filters, width=coefficients.width, least=self.least
        )
        repeats = [scaling.round_repeats(row.repeats, coefficients.depth) for row in self.stages]
        if self.fixed_ends:
            repeats[0], repeats[-1] = self.stages[0].repeats, self.stages[-1].repeats
        if survival_probability is None:
            survival_probability = self.survival_probability
        stages, index = [], 0
        for number, (row, count) in enumerate(zip(self.stages, repeats, strict=True), 1):
            blocks = []
            for position in range(count):
                block = self.block(
                    row,
                    rounded,
                    name=f"stage{number}/block{position + 1}",
                    stride=row.stride if position == 0 else 1,
                    inputs=inputs,
                    survival=1 - (1 - survival_probability) * index / sum(repeats),
                )
                blocks.append(block)
                inputs, index = block.outputs, index + 1
            stages.append(tuple(blocks))
        return tuple(stages)


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, activation: the stem and the head."""

    factories: LayerFactories
    filters: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.factories.conv(self.filters, self.kernel, self.stride, name="conv")(x)
        return self.factories.act(self.factories.norm(name="norm")(x))


class Blocks(nn.Module):
    """One stage: its blocks in order; `remat`: each is computed again for its gradient."""

    factories: LayerFactories
    blocks: Sequence[Block]
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def run(module: nn.Module, x: jax.Array) -> jax.Array:
            return module(x, train)

        run = nn.remat(run) if self.remat and train else run
        for block in self.blocks:
            x = run(block.module(self.factories, name=block.name.rpartition("/")[2]), x)
        return x


class Network(nn.Module):
    """The network of an `Architecture`.

    Attributes:
      architecture: the scaled table.
      dropout: rate between pooling and classifier.
      momentum, epsilon: of batch normalisation; momentum is the fraction of the running value kept.
      dtype: of the computation; parameters and statistics stay float32.
      padding: of every convolution and pooling, same or symmetric; see `operations.PADDINGS`.
      depthwise_conv: the operation of the depthwise layers, `(x, kernel, stride, padding) -> y`.
      zero_classifier: whether the classifier's weights start at 0, not at the reference's values.
      remat: whether a block's inside is computed again for the gradient, instead of kept.
      batch_norm_group, batch_norm_axis: who shares statistics in training; see `layers.BatchNorm`.
    """

    architecture: Architecture
    dropout: float = 0.2
    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32
    padding: str = "same"
    depthwise_conv: Callable[..., jax.Array] = operations.depthwise_conv
    zero_classifier: bool = False
    remat: bool = False
    batch_norm_group: int | None = None
    batch_norm_axis: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs the network.

        Args:
          images: normalised images, [N, H, W, 3].
          train: batch statistics, dropout and stochastic depth are on. Needs the random streams
            "dropout" and "stochastic_depth", and "batch_stats" mutable.

        Returns:
          Logits [N, num_classes] in float32, and the features by name: stem (after its pooling),
          stage1, stage2 and so on, and head where there is one, as [N, h, w, C], pre_logits as
          [N, C].
        """
        spec, settings = self.architecture, {"dtype": self.dtype, "padding": self.padding}
        factories = LayerFactories(
            conv=functools.partial(layers.Conv, **settings),
            depthwise=functools.partial(
                layers.DepthwiseConv, **settings, operation=self.depthwise_conv
            ),
            norm=functools.partial(
                layers.BatchNorm,
                train=train,
                momentum=self.momentum,
                epsilon=self.epsilon,
                group=self.batch_norm_group,
                axis=self.batch_norm_axis,
            ),
            act=spec.activation,
        )
        features = {}
        x, stem = images.astype(self.dtype), spec.stem
        x = ConvNormAct(factories, stem.filters, stem.kernel, stem.stride, name="stem")(x)
        if stem.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), operations.lax_padding(3, self.padding))
        features["stem"] = x
        for number, blocks in enumerate(spec.stages, 1):
            x = Blocks(factories, blocks, self.remat, name=f"stage{number}")(x, train)
            features[f"stage{number}"] = x
        if spec.head_filters:
            x = ConvNormAct(factories, spec.head_filters, 1, 1, name="head")(x)
            features["head"] = x
        x = operations.spatial_mean(x)[:, 0, 0, :]
        features["pre_logits"] = x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        init = nn.initializers.zeros if self.zero_classifier else layers.dense_init
        classifier = layers.Dense(spec.num_classes, self.dtype, init, name="classifier")
        return classifier(x).astype(jnp.float32), features
