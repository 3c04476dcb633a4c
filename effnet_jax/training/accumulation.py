"""A step's batch in microbatches, one after the other: less memory, and still one reduction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from effnet_jax import parallel

PyTree = Any


def in_microbatches(
    function: Callable[[PyTree, PyTree, PyTree], PyTree], count: int, mesh: Mesh, members: int = 1
) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
    """The sum of `function` over the microbatches of a batch and over devices.

    The compiler would sum over devices in every microbatch; here they are summed once, at the end.
    No example moves: microbatch k holds the k-th share of what each device has.

    Args:
      function: `(fixed, batch, keys) -> sums`, of a microbatch on one device, as the result:
        `fixed` whole on every device, `batch` split by example, and keys to derive others from.
      count: microbatches that a device's examples divide into.
      members: consecutive devices that `function` may sum over, as the mesh axis "member".
    """
    axes = ("group", "member")
    whole, by_example = PartitionSpec(), PartitionSpec(axes)

    def on_device(fixed: PyTree, batch: PyTree, keys: PyTree) -> PyTree:
        first = lax.axis_index(axes) * count

        def run(index: jax.Array, batch: PyTree) -> PyTree:
            own = jax.tree.map(lambda key: jax.random.fold_in(key, first + index), keys)
            return function(fixed, batch, own)

        def add(total: PyTree, each: tuple[jax.Array, PyTree]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, run(*each)), None

        split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        each = jnp.arange(count), split
        shapes = jax.eval_shape(run, *jax.tree.map(lambda x: x[0], each))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.psum(lax.scan(add, zeros, each)[0], axes)

    return jax.shard_map(
        on_device,
        mesh=parallel.grouped(mesh, members),
        in_specs=(whole, by_example, whole),
        out_specs=whole,
        check_vma=False,  # BatchNorm's own gradient says what is summed over devices.
    )
