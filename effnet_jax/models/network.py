"""The parts that all families share. A network is a table of blocks; one module builds any table.

A family's file defines its kinds of `Block`, and a `Base` for each base network, with its table and
settings. `Base.architecture` scales the table into an `Architecture`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effnet_jax import scaling
from effnet_jax.models import fused, layers, operations
from effnet_jax.scaling import Coefficients, Layer

Function = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LayerFactories:
    """Constructors of the layers in blocks, with their settings bound, and the activation."""

    conv: Callable[..., nn.Module]  # (filters, kernel, stride=1, use_bias=False, name=...)
    depthwise: Callable[..., nn.Module]  # (kernel, stride=1, name=...)
    norm: Callable[..., nn.Module]  # (name=...)
    act: Function
    fused: fused.Settings | None = None  # For MBConv in training; None: layer by layer.
    zero_residual: bool = False

    def conv_norm(
        self, x: jax.Array, name: str, kernel: int, stride: int, filters: int, **norm: Any
    ) -> jax.Array:
        """Applies the convolution NAME, then the normalisation NAME_norm with options `norm`."""
        x = self.conv(filters, kernel, stride, name=name)(x)
        return self.norm(name=f"{name}_norm", **norm)(x)

    def frozen(self) -> LayerFactories:
        """Returns a copy whose BatchNorms use the running statistics, unchanged, in training."""
        norm = functools.partial(self.norm, train=False)
        return dataclasses.replace(self, norm=norm, fused=None)

    def last_norm(self, block: Block) -> dict[str, Any]:
        """Returns the options of the last normalisation in a block's residual branch."""
        is_zero = self.zero_residual and block.has_skip
        return {"scale_init": nn.initializers.zeros} if is_zero else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One block after scaling and rounding; each kind of block adds its own settings."""

    name: str  # Slash-joined module path.
    stride: int
    inputs: int  # Channels before and after the block.
    outputs: int
    survival: float  # Probability that the residual branch is kept for a sample in training.
    skip: bool = True  # False: no skip, whatever the shapes.

    @property
    def has_skip(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.skip and self.stride == 1 and self.inputs == self.outputs

    def layers(self, size: int) -> list[Layer]:
        """Returns the convolutions in order, for a square input of `size` pixels per side."""
        raise NotImplementedError

    def apply(self, make: LayerFactories, x: jax.Array, drop: Function) -> jax.Array:
        """Maps x [N, h, w, inputs] to [N, h / stride, w / stride, outputs], sizes rounded up.

        `drop` applies stochastic depth to a residual branch; see `BlockModule`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution; with `pool`, followed by a 3x3 max pool with stride 2."""

    filters: int
    kernel: int = 3
    stride: int = 2
    pool: bool = False


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The scaled network as a table, from which the module is built and the cost is counted."""

    resolution: int  # Side of the square input image, in pixels.
    stem: Stem
    stages: tuple[tuple[Block, ...], ...]
    head_filters: int  # Of the 1x1 convolution before the pooling; 0: no such convolution.
    num_classes: int
    activation: str  # A name in `jax.nn`; used after normalisations and in the gate.

    @property
    def total_stride(self) -> int:
        strides = [block.stride for blocks in self.stages for block in blocks]
        return self.stem.stride * (2 if self.stem.pool else 1) * math.prod(strides)

    def layers(self) -> list[Layer]:
        """Returns all convolutions and dense layers in order, named as in the parameter tree."""
        stem, size = self.stem, -(-self.resolution // self.stem.stride)  # Either padding rounds up.
        rows = [Layer("stem/conv", stem.kernel, stem.stride, 3, stem.filters, size, norm=True)]
        if stem.pool:
            size = -(-size // 2)
        for block in itertools.chain(*self.stages):
            rows += block.layers(size)
            size, channels = -(-size // block.stride), block.outputs
        if self.head_filters:
            rows.append(Layer("head/conv", 1, 1, channels, self.head_filters, size, norm=True))
            channels = self.head_filters
        return [*rows, Layer("classifier", 1, 1, channels, self.num_classes, 1, bias=True)]


class Stage(NamedTuple):
    """A row of a base network's table: `repeats` blocks, of which only the first has the stride."""

    stride: int
    filters: int  # Outputs of the blocks; in a ResNet, outputs of their 3x3 convolutions.
    repeats: int
    kernel: int = 3
    expand: int = 1  # Channels inside a block divided by its input channels,
    expand_of: int | None = None  # or by this number.
    fused: bool = False  # Whether the blocks are `mbconv.FusedMBConv`.
    skip: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A base network: its unscaled table, and its values for `config.model`."""

    stages: tuple[Stage, ...]
    # `(row, round_filters, name=, stride=, inputs=, survival=)` returns a block of the row;
    # `round_filters` scales and rounds the table's filters.
    block: Callable[..., Block]
    activation: str  # A name in `jax.nn`: swish, relu or relu6.
    stem: Stem = Stem(filters=32)
    head_filters: int = 0
    fixed_ends: bool = False  # Do not scale stem, head, and the first and last stage's repeats.
    narrow_head: bool = True  # Scale the head by widths below 1 too.
    least: float = 0.9  # See scaling.round_filters.
    resolution: int = 224  # Of the unscaled network, in pixels.
    dropout: float | None = None  # Before the classifier; None: grows with phi.
    survival_probability: float = 1.0  # Of the last block; 1: no stochastic depth.
    batch_norm_momentum: float = 0.99  # Fraction of the running statistics that is kept.
    normalization: str = "imagenet"  # Of the pixels; a name in `config.NORMALIZATIONS`.

    def architecture(
        self,
        coefficients: Coefficients,
        num_classes: int = 1000,
        stem_stride: int = 2,
        survival_probability: float = 1.0,
    ) -> Architecture:
        """Scales and rounds the table.

        With a `stem_stride` of 1, for small images, the stem is a 3x3 convolution with stride 1;
        with 2 it is the base network's own. Block i of n, counted from 0, survives with probability
        1 - (1 - survival_probability) * i / n.
        """
        rounded = functools.partial(scaling.round_filters, least=self.least)
        width = 1.0 if self.fixed_ends else coefficients.width
        head_width = width if self.narrow_head else max(1.0, width)
        stem = self.stem if stem_stride == 2 else Stem(self.stem.filters, stride=1)
        stem = dataclasses.replace(stem, filters=rounded(stem.filters, width))
        repeats = [scaling.round_repeats(row.repeats, coefficients.depth) for row in self.stages]
        if self.fixed_ends:
            repeats[0], repeats[-1] = self.stages[0].repeats, self.stages[-1].repeats

        stages, inputs, index = [], stem.filters, 0
        for number, (row, count) in enumerate(zip(self.stages, repeats, strict=True), 1):
            stages.append([])
            for position in range(count):
                block = self.block(
                    row,
                    functools.partial(rounded, width=coefficients.width),
                    name=f"stage{number}/block{position + 1}",
                    stride=row.stride if position == 0 else 1,
                    inputs=inputs,
                    survival=1 - (1 - survival_probability) * index / sum(repeats),
                )
                stages[-1].append(block)
                inputs, index = block.outputs, index + 1
        return Architecture(
            resolution=coefficients.resolution,
            stem=stem,
            stages=tuple(map(tuple, stages)),
            head_filters=self.head_filters and rounded(self.head_filters, head_width),
            num_classes=num_classes,
            activation=self.activation,
        )


def init_variables(model: nn.Module, resolution: int, key: jax.Array) -> dict[str, Any]:
    """Returns initial params and batch_stats; under jit the forward pass is not computed."""
    return model.init(key, jnp.zeros((1, resolution, resolution, 3)), train=False)


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, activation: the stem and the head."""

    factories: LayerFactories
    filters: int
    kernel: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.factories.conv(self.filters, self.kernel, self.stride, name="conv")(x)
        return self.factories.act(self.factories.norm(name="norm")(x))


class BlockModule(nn.Module):
    """Holds the parameters of a block; see `Block.apply`."""

    factories: LayerFactories
    block: Block

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def drop(x: jax.Array) -> jax.Array:
            if not train:
                return x
            key = self.make_rng("stochastic_depth")
            return layers.stochastic_depth(x, self.block.survival, key)

        return self.block.apply(self.factories, x, drop)


class Blocks(nn.Module):
    """The blocks of one stage in order; with `remat`, each is recomputed for its gradient."""

    factories: LayerFactories
    blocks: Sequence[Block]
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        module = nn.remat(BlockModule, static_argnums=2) if self.remat and train else BlockModule
        for block in self.blocks:
            x = module(self.factories, block, name=block.name.rpartition("/")[2])(x, train)
        return x


class Network(nn.Module):
    """The network of an `Architecture`."""

    architecture: Architecture
    dropout: float = 0.2  # Rate between pooling and classifier.
    momentum: float = 0.99  # Of BatchNorm; see `layers.BatchNorm`.
    epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32  # Of the computation; parameters and statistics stay float32.
    padding: str = "same"  # Of every convolution and pooling; see `operations.PADDINGS`.
    operations: str = "auto"  # See `operations.choose`.
    zero_classifier: bool = False  # Initialise the classifier to 0, not as the reference does.
    zero_residual: bool = False  # Initialise MBConv's residual branches to 0 (identity blocks).
    remat: bool = False  # Recompute each block for its gradient.
    features_only: bool = False  # Stop after the last stage; the logits are None.
    frozen_norms: tuple[str, ...] = ()  # Modules, such as "stage1"; see `LayerFactories.frozen`.
    batch_norm_group: int | None = None
    batch_norm_axis: str | None = None
    examples: int | None = None  # Images per device at a time, for the set "fused"; None: all.

    def init_variables(self, key: jax.Array) -> dict[str, Any]:
        """Returns initial "params" and "batch_stats", for images of the network's resolution."""
        return init_variables(self, self.architecture.resolution, key)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits [N, num_classes] in float32, and features, of images [N, H, W, 3].

        The features are stem (after its pooling), stage1, stage2 and so on, and head if the network
        has one, [N, h, w, C], and pre_logits, [N, C]. Training needs the random streams "dropout"
        and "stochastic_depth", and "batch_stats" mutable.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be normalised floats, not {images.dtype}; "
                "see data.preprocess.normalize"
            )
        spec, settings = self.architecture, {"dtype": self.dtype, "padding": self.padding}
        train = train and images.size > 0  # An empty batch has no statistics.
        name = operations.choose(self.operations, jax.default_backend())
        # "cpu" needs the size of the images, and "fused" also needs that of the batch.
        needed = images.shape[1:] if name == "cpu" else images.shape
        if not all(isinstance(each, int) for each in needed):  # Symbolic, in `jax.export`.
            name = "plain"
        chosen, per_device = operations.SETS[name], self.examples or images.shape[0]
        norm = {"train": train, "momentum": self.momentum, "epsilon": self.epsilon}
        norm |= {"group": self.batch_norm_group, "axis": self.batch_norm_axis}
        norm |= {"operation": chosen.batch_norm}
        inside = fused.Settings(jnp.dtype(self.dtype), self.padding, norm, per_device)
        make = LayerFactories(
            conv=functools.partial(layers.Conv, **settings),
            depthwise=functools.partial(layers.DepthwiseConv, chosen.depthwise_conv, **settings),
            norm=functools.partial(layers.BatchNorm, **norm),
            act=getattr(jax.nn, spec.activation),
            fused=inside if name == "fused" and train else None,
            zero_residual=self.zero_residual,
        )
        names = ("stem", *(f"stage{number + 1}" for number in range(len(spec.stages))), "head")
        factories = {name: make.frozen() if name in self.frozen_norms else make for name in names}
        features, stem, x = {}, spec.stem, images.astype(self.dtype)
        x = ConvNormAct(factories["stem"], stem.filters, stem.kernel, stem.stride, name="stem")(x)
        if stem.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), operations.lax_padding(3, self.padding))
        features["stem"] = x
        for number, blocks in enumerate(spec.stages, 1):
            stage = f"stage{number}"
            x = Blocks(factories[stage], blocks, self.remat, name=stage)(x, train)
            features[stage] = x
        if self.features_only:
            return None, features
        if spec.head_filters:
            x = ConvNormAct(factories["head"], spec.head_filters, name="head")(x)
            features["head"] = x
        x = operations.spatial_mean(x).squeeze((1, 2))
        features["pre_logits"] = x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        init = nn.initializers.zeros if self.zero_classifier else layers.dense_init
        dense = nn.Dense(spec.num_classes, dtype=self.dtype, kernel_init=init, name="classifier")
        return dense(x).astype(jnp.float32), features
