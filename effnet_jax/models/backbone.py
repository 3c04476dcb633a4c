"""Feature maps for other networks: a network without head and classifier."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.errors import UserError
from effnet_jax.models.network import Network

FROZEN = "frozen"  # Collection of the weights that are not trained.


class Backbone(nn.Module):
    """Computes a network's feature maps by stride; `effnet_jax.backbone` creates this module."""

    network: Network
    levels: tuple[tuple[int, str, int], ...]  # Stride, name of the feature, channels.
    in_channels: int = 3
    frozen: bool = False
    initial: Callable[[], dict[str, Any]] | None = None  # Returns trained variables.

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each feature map, by stride."""
        return {stride: channels for stride, _, channels in self.levels}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> dict[int, jax.Array]:
        """Returns [N, ceil(H / stride), ceil(W / stride), channels] for each stride.

        `images` are normalised, [N, H, W, in_channels] of any size. Training needs the random
        stream "stochastic_depth", and "batch_stats" mutable. Frozen weights are in the collection
        "frozen", which no optimizer sees; `train` then has no effect.
        """
        if images.shape[-1] != self.in_channels:
            text = f"the backbone takes images of {self.in_channels} channels"
            raise UserError(f"{text}, not {images.shape[-1]}; set in_channels")
        if self.frozen:
            network = self.network.clone(parent=None)

            def start():
                if self.initial:
                    return self.initial()
                return network.init(self.make_rng("params"), images, train=False)

            variables = self.variable(FROZEN, "weights", start).value
            _, features = network.apply(variables, images, train=False)
        else:
            _, features = self.network(images, train)
            if self.is_initializing() and self.initial:
                for collection, arrays in self.initial().items():
                    self.put_variable(collection, "network", arrays)
        return {stride: features[name] for stride, name, _ in self.levels}


def make(network: Network, strides: Sequence[int], **options: Any) -> Backbone:
    """Returns the backbone of a network, without the stages after the largest stride.

    Raises UserError for strides that the network does not have.
    """
    spec = network.architecture
    stride = spec.stem.stride * (2 if spec.stem.pool else 1)
    last = {stride: (0, "stem", spec.stem.filters)}  # The last feature map of each stride.
    for number, blocks in enumerate(spec.stages, 1):
        for block in blocks:
            stride *= block.stride
        last[stride] = (number, f"stage{number}", blocks[-1].outputs)
    if not strides or not set(strides) <= last.keys():
        known = ", ".join(map(str, last))
        raise UserError(f"strides must be some of {known}, which this network has; got {strides}")
    stages = spec.stages[: max(last[each][0] for each in strides)]
    network = network.clone(
        architecture=dataclasses.replace(spec, stages=stages), features_only=True
    )
    return Backbone(network, tuple((each, *last[each][1:]) for each in strides), **options)


def adapt(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a first convolution's kernel [k, k, 3, filters] to images with `channels` channels.

    One channel has the sum over RGB, so that a grey image gives the same output as in RGB. For
    other numbers the RGB channels repeat, times 3 / channels. Source: timm/models/_manipulate.py,
    adapt_input_conv.
    """
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % 3, 2)
    return repeated * np.float32(3 / channels)


def trained(backbone: Backbone, variables: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Returns a function that returns a backbone's part of a network's variables.

    The first convolution is adapted to the backbone's channels.
    """
    stages = range(1, len(backbone.network.architecture.stages) + 1)
    names = ["stem", *(f"stage{number}" for number in stages)]
    kept = {key: {name: arrays[name] for name in names} for key, arrays in variables.items()}
    if backbone.in_channels != 3:
        stem = kept["params"]["stem"]
        kernel = adapt(np.asarray(stem["conv"]["kernel"]), backbone.in_channels)
        kept["params"]["stem"] = stem | {"conv": {"kernel": kernel}}
    return lambda: jax.tree.map(jnp.array, kept)  # Copies, so that a step may donate them.
