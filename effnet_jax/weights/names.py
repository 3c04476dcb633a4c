"""The arrays of a network, with each format's name and order of axes for them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from effnet_jax.errors import UserError
from effnet_jax.models.network import Architecture
from effnet_jax.scaling import Layer

# Collection and name of each leaf of a normalisation; all other leaves belong to a layer.
NORM = {
    "scale": ("params", "scale"),
    "shift": ("params", "bias"),
    "mean": ("batch_stats", "mean"),
    "var": ("batch_stats", "var"),
}
WHICH = ("ema", "raw")  # Averages of weights, or the weights themselves.
# Possible numbers of outputs for each named set of classes; google/automl's heads for ImageNet-21k
# have the larger number.
OUTPUTS = {
    "imagenet": (1000, 1001),
    "imagenet_background": (1001,),
    "imagenet21k": (21841, 21843),
}
# Prefixes that PyTorch programs put before every name: torch.compile, DistributedDataParallel, the
# attribute of a Lightning module or a user's module, and transformers' wrapper of timm.
WRAPPERS = ("_orig_mod.", "module.", "model.", "net.", "network.", "backbone.", "timm_model.")
# Counts of BatchNorm and of torch.optim.swa_utils.AveragedModel, which are not weights.
COUNTS = re.compile(r"(.+\.)?(num_batches_tracked|n_averaged)")


class Array(NamedTuple):
    """One array of a network, and the position of its layer, which other formats put in its name.

    Attributes:
      name: ours, as in "params/stage1/block1/depthwise/kernel".
      leaf: conv, depthwise or dense for a kernel; bias of a layer; or scale, shift, mean or var of
        the normalisation after a layer.
      shape: ours.
      role: name of the layer in its block: expand, depthwise, squeeze_excite/reduce,
        squeeze_excite/expand or project; outside of blocks stem/conv, head/conv or classifier.
      stage, block: numbers of the stage, and of the block in the stage, from 0.
      index: number of the block in the network, from 0.
      roles: roles of all layers of the block, in order; empty outside of blocks.
      stages: number of stages of the network.
      v2: whether the network has fused blocks.
    """

    name: str
    leaf: str
    shape: tuple[int, ...]
    role: str
    stage: int = 0
    block: int = 0
    index: int = 0
    roles: tuple[str, ...] = ()
    stages: int = 0
    v2: bool = False

    @property
    def expands(self) -> bool:
        return "expand" in self.roles

    @property
    def fused(self) -> bool:
        return "depthwise" not in self.roles

    @property
    def norm(self) -> int:
        """Number of the layer's normalisation in its block, from 0."""
        return [role for role in self.roles if "/" not in role].index(self.role)


CLASSIFIER_BIAS = Array("params/classifier/bias", "bias", (), "classifier")


def _keep_all(names: Iterable[str], weights: str) -> dict[str, str]:
    return {name: name for name in names}


class Names(NamedTuple):
    """The names of a format.

    Attributes:
      pattern: matches some names of the format, and no name of another format.
      block: returns the prefix of all names in an array's block.
      parts: returns the names of a layer and of its normalisation, without prefix; None: ours.
      leaves: suffixes of the names, by leaf.
      axes: our axes in the format's order, by leaf; leaves that are not listed keep their order.
      clean: `(names in a file, "ema" or "raw")` returns a dict from names as of `of` to names in
        the file, without those that are known not to be weights.
    """

    pattern: str
    block: Callable[[Array], str] | None = None
    parts: Callable[[Array], tuple[str, str]] | None = None
    leaves: Mapping[str, str] = {}
    axes: Mapping[str, tuple[int, ...]] = {}
    clean: Callable[[Iterable[str], str], dict[str, str]] = _keep_all

    def of(self, array: Array) -> str:
        """Returns the format's name for an array."""
        if self.parts is None:
            return array.name
        start = self.block(array) if array.roles else ""
        part = self.parts(array)[array.leaf in NORM]
        return f"{start}{part}{self.leaves[array.leaf]}"

    def shape(self, array: Array) -> tuple[int, ...]:
        """The shape of an array in the format's order of axes."""
        return self.theirs(array, np.broadcast_to(0, array.shape)).shape

    def ours(self, array: Array, value: np.ndarray) -> np.ndarray:
        """Transposes a value from the format's order of axes to ours."""
        axes = self.axes.get(array.leaf)
        return value if axes is None else value.transpose(np.argsort(axes))

    def theirs(self, array: Array, value: np.ndarray) -> np.ndarray:
        """Transposes a value from our order of axes to the format's."""
        axes = self.axes.get(array.leaf)
        return value if axes is None else value.transpose(axes)


def list_arrays(architecture: Architecture) -> list[Array]:
    """Returns all arrays of a network, in the order of its layers."""
    blocks = [(s, b, x) for s, stage in enumerate(architecture.stages) for b, x in enumerate(stage)]
    places = {}
    for index, (stage, number, block) in enumerate(blocks):
        names = [layer.name for layer in block.layers(1)]
        roles = tuple(name.removeprefix(f"{block.name}/") for name in names)
        for name, role in zip(names, roles, strict=True):
            places[name] = role, stage, number, index, roles
    stages = len(architecture.stages)
    v2 = any("depthwise" not in roles for *_, roles in places.values())
    found = []
    for layer in architecture.layers():
        place = places.get(layer.name, (layer.name, 0, 0, 0, ()))
        found += [Array(*leaf, *place, stages, v2) for leaf in _leaves(layer)]
    return found


def _leaves(layer: Layer) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields name, leaf and shape of each array of a layer and of its normalisation."""
    ins, outs = layer.inputs // layer.groups, layer.outputs
    if layer.name == "classifier":
        yield f"params/{layer.name}/kernel", "dense", (ins, outs)
    else:
        leaf = "depthwise" if layer.groups == layer.inputs > 1 else "conv"
        yield f"params/{layer.name}/kernel", leaf, (layer.kernel, layer.kernel, ins, outs)
    if layer.bias:
        yield f"params/{layer.name}/bias", "bias", (outs,)
    if layer.norm:
        path, _, last = layer.name.rpartition("/")
        norm = f"{path}/norm" if last == "conv" else f"{layer.name}_norm"
        for leaf, (collection, name) in NORM.items():
            yield f"{collection}/{norm}/{name}", leaf, (outs,)


def unwrap(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes COUNTS, and removes from the names each of WRAPPERS that all names start with."""
    arrays = {name: array for name, array in arrays.items() if not COUNTS.fullmatch(name)}
    while arrays and (shared := [w for w in WRAPPERS if all(n.startswith(w) for n in arrays)]):
        arrays = {name.removeprefix(shared[0]): array for name, array in arrays.items()}
    return arrays


def by_plain_name(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns a dict from plain names, as returned by `Names.of`, to names in the file.

    Raises UserError if two names in the file have the same plain name, as with two networks.
    """
    kept = {}
    for plain, name in pairs:
        if plain in kept:
            raise UserError(
                f"both {kept[plain]} and {name} are {plain} of a network; save only one network"
            )
        kept[plain] = name
    return kept


# Attributes of Names that are common to PyTorch's formats, and to TensorFlow's.
TORCH = {
    "leaves": {
        **dict.fromkeys(("conv", "depthwise", "dense", "scale"), ".weight"),
        **dict.fromkeys(("bias", "shift"), ".bias"),
        "mean": ".running_mean",
        "var": ".running_var",
    },
    "axes": {"conv": (3, 2, 0, 1), "depthwise": (3, 2, 0, 1), "dense": (1, 0)},
}
TENSORFLOW = {
    "leaves": {
        **dict.fromkeys(("conv", "dense"), "/kernel"),
        "depthwise": "/depthwise_kernel",
        "bias": "/bias",
        "scale": "/gamma",
        "shift": "/beta",
        "mean": "/moving_mean",
        "var": "/moving_variance",
    },
    "axes": {"depthwise": (0, 1, 3, 2)},
}
