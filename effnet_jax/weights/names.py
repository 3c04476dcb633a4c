"""A network's arrays, and how another format calls them and orders their axes."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from effnet_jax.models.network import Architecture

Shapes = Mapping[str, tuple[int, ...]]
KERNELS = ("conv", "depthwise", "dense")


class Place(NamedTuple):
    """Where a layer is: what names in other formats are made from.

    Attributes:
      role: its name in its block: expand, depthwise, squeeze_excite/reduce, squeeze_excite/expand
        or project; outside of blocks stem/conv, head/conv or classifier.
      stage, block: the block's numbers, both from 0, the second in its stage.
      index: the block's number in the network, from 0.
      norms: roles of the block's layers that a normalisation follows, in order.
      squeezes: whether the block has squeeze-excitation.
      stages: of the network.
      v2: whether the network has fused blocks.
    """

    role: str
    stage: int
    block: int
    index: int
    norms: tuple[str, ...]
    squeezes: bool
    stages: int
    v2: bool

    @property
    def expands(self) -> bool:
        return "expand" in self.norms

    @property
    def fused(self) -> bool:
        return "depthwise" not in self.norms

    @property
    def norm(self) -> int:
        """Number of this layer's normalisation in its block, from 0."""
        return self.norms.index(self.role)


class Array(NamedTuple):
    """One array of a network.

    Attributes:
      name: ours, as in "params/stage1/block1/depthwise/kernel".
      leaf: a kernel's kind, conv, depthwise or dense; bias of a layer; or of a normalisation scale,
        shift, mean or var.
      place: its layer, or the one that its normalisation follows.
      shape: ours.
    """

    name: str
    leaf: str
    place: Place
    shape: tuple[int, ...]


class Names(NamedTuple):
    """A format's names.

    Attributes:
      pattern: that a name of the format matches, and none of the others'.
      of: an array's name.
      axes: by leaf, our axes in the format's order; as they are where it isn't in there.
      clean: `(names in a file, "ema" or "raw")` -> name as `of` gives it -> name in the file.
        What is known to be beside the weights is left out.
    """

    pattern: str
    of: Callable[[Array], str]
    axes: Mapping[str, tuple[int, ...]]
    clean: Callable[[Iterable[str], str], dict[str, str]]

    def shape(self, array: Array) -> tuple[int, ...]:
        """An array's, in the format's order of axes."""
        axes = self.axes.get(array.leaf, range(len(array.shape)))
        return tuple(array.shape[axis] for axis in axes)

    def ours(self, array: Array, value: np.ndarray) -> np.ndarray:
        """An array of the format's in our order of axes."""
        axes = self.axes.get(array.leaf)
        return value if axes is None else value.transpose(np.argsort(axes))

    def theirs(self, array: Array, value: np.ndarray) -> np.ndarray:
        """An array of ours in the format's order of axes."""
        axes = self.axes.get(array.leaf)
        return value if axes is None else value.transpose(axes)


def arrays(architecture: Architecture) -> list[Array]:
    """Every array of a network, in order of its layers."""
    layers = architecture.layers()
    blocks = {block.name: block for stage in architecture.stages for block in stage}
    order = list(blocks)
    norms = {name: [] for name in order}
    squeezes = set()
    for layer in layers:
        if match := re.fullmatch(r"(stage\d+/block\d+)/(.+)", layer.name):
            if layer.norm:
                norms[match[1]].append(match[2])
            else:
                squeezes.add(match[1])
    v2 = any("depthwise" not in roles for roles in norms.values())
    found = []
    for layer in layers:
        match = re.fullmatch(r"(stage(\d+)/block(\d+))/(.+)", layer.name)
        name, stage, block, role = match.groups() if match else (None, 0, 0, layer.name)
        place = Place(
            role,
            int(stage) - 1,
            int(block) - 1,
            order.index(name) if match else -1,
            tuple(norms[name]) if match else (),
            name in squeezes,
            len(architecture.stages),
            v2,
        )
        ins, outs = layer.inputs // layer.groups, layer.outputs
        if layer.name == "classifier":
            kind, shape = "dense", (ins, outs)
        else:
            kind = "depthwise" if layer.groups == layer.inputs > 1 else "conv"
            shape = (layer.kernel, layer.kernel, ins, outs)
        found.append(Array(f"params/{layer.name}/kernel", kind, place, shape))
        if layer.bias:
            found.append(Array(f"params/{layer.name}/bias", "bias", place, (outs,)))
        if layer.norm:
            norm = f"{layer.name.removesuffix('/conv')}/norm"
            if not layer.name.endswith("/conv"):
                norm = f"{layer.name}_norm"
            for kind, leaf, ours in (
                ("scale", "scale", "params"),
                ("shift", "bias", "params"),
                ("mean", "mean", "batch_stats"),
                ("var", "var", "batch_stats"),
            ):
                found.append(Array(f"{ours}/{norm}/{leaf}", kind, place, (outs,)))
    return found


def _named(
    layer: Callable[[Place], str],
    norm: Callable[[Place], str],
    leaves: Mapping[str, str],
    separator: str,
) -> Callable[[Array], str]:
    def of(array: Array) -> str:
        of_layer = array.leaf in (*KERNELS, "bias")
        return (layer if of_layer else norm)(array.place) + separator + leaves[array.leaf]

    return of


def _clean_torch(names: Iterable[str], weights: str) -> dict[str, str]:
    """A DistributedDataParallel's prefix is dropped; steps are counted beside the statistics."""
    return {
        name.removeprefix("module."): name
        for name in names
        if not name.endswith(".num_batches_tracked")
    }


def torch(pattern: str, layer: Callable[[Place], str], norm: Callable[[Place], str]) -> Names:
    """The names of a PyTorch module, given those of its layers and their normalisations."""
    leaves = {
        **dict.fromkeys((*KERNELS, "scale"), "weight"),
        **dict.fromkeys(("bias", "shift"), "bias"),
        "mean": "running_mean",
        "var": "running_var",
    }
    axes = {"conv": (3, 2, 0, 1), "depthwise": (3, 2, 0, 1), "dense": (1, 0)}
    pattern = rf"(module\.)?{pattern}"
    return Names(pattern, _named(layer, norm, leaves, "."), axes, _clean_torch)


def tensorflow(
    pattern: str,
    layer: Callable[[Place], str],
    norm: Callable[[Place], str],
    clean: Callable[[Iterable[str], str], dict[str, str]],
) -> Names:
    """The same of a TensorFlow model."""
    leaves = {
        "conv": "kernel",
        "depthwise": "depthwise_kernel",
        "dense": "kernel",
        "bias": "bias",
        "scale": "gamma",
        "shift": "beta",
        "mean": "moving_mean",
        "var": "moving_variance",
    }
    axes = {"depthwise": (0, 1, 3, 2)}
    return Names(pattern, _named(layer, norm, leaves, "/"), axes, clean)
