"""Names of arrays: everywhere, an array's name is its slash-joined path in a tree."""

from typing import Any

import jax

PyTree = Any


def path_name(path: tuple) -> str:
    """Converts a JAX key path to a name such as "stage3/block2/depthwise/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shapes_by_name(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf by name."""
    leaves = jax.tree.leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
