"""Names of arrays: the slash-joined path in a tree is an array's address everywhere."""

from typing import Any

import jax

PyTree = Any


def path_name(path: tuple) -> str:
    """A JAX key path as "stage3/block2/depthwise/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shapes_by_name(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Name -> shape, for every leaf that has a shape."""
    leaves = jax.tree.leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
