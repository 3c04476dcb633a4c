"""Devices: one `data` axis over all of them, and what is laid out how."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effnet_jax.errors import UserError

PyTree = Any


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices in one axis, "data"; others than this run's where they are given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters and all the rest of the state."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split over devices along the first axis: images, labels, mask."""
    return NamedSharding(mesh, PartitionSpec("data"))


# Below so many numbers a device, a split saves less memory than its message costs time.
LEAST_SPLIT = 1024


def spread(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Shardings that split each array over the devices, along its longest axis that divides evenly.

    Small arrays, and those without such an axis, are whole on every device.
    """

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        lengths = {n: axis for axis, n in enumerate(leaf.shape) if n % mesh.size == 0}
        if not lengths or leaf.size < LEAST_SPLIT * mesh.size:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * lengths[max(lengths)], "data"))

    return jax.tree.map(sharding, shapes)


def state_sharding(shapes: PyTree, mesh: Mesh, sharded: bool) -> PyTree:
    """How a `TrainState` is laid out: a sharding for every array.

    Args:
      shapes: of the state.
      mesh: of the devices.
      sharded: whether optimizer state and averages are `spread`; all else is whole on every device.
        Source: ZeRO, stage 1 (arXiv 1910.02054).
    """
    whole = jax.tree.map(lambda _: replicated(mesh), shapes)
    if not sharded:
        return whole
    return whole.replace(opt_state=spread(shapes.opt_state, mesh), ema=spread(shapes.ema, mesh))


def laid_out(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with their shardings: one for all, or a tree of them as of the shapes."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        jax.tree.broadcast(shardings, shapes),
    )


def check_batch(key: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError where a global batch can't be split evenly over devices, and then parts."""
    pieces = mesh.size * parts
    if batch_size < 1 or batch_size % pieces:
        near = max(1, round(batch_size / pieces)) * pieces
        of_each = f" in {parts} parts each (config.accumulation_steps)" if parts > 1 else ""
        raise UserError(
            f"config.{key}={batch_size} does not divide by the {mesh.size} devices{of_each}; "
            f"the nearest that does is {near}"
        )


def check_hosts(examples: int, split: str) -> None:
    """Raises UserError where there are more hosts than records, or they differ in devices."""
    hosts, devices = jax.process_count(), jax.device_count()
    if examples < hosts:
        raise UserError(
            f"the {split} data has {examples} records for {hosts} hosts; use no more hosts than "
            "records"
        )
    if devices != hosts * jax.local_device_count():
        raise UserError(
            f"this host has {jax.local_device_count()} of the {devices} devices of {hosts} hosts; "
            "give every host the same number of them"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's part of a batch to its devices, as global arrays."""
    sharding = by_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def abstract_batch(batch_size: int, resolution: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `put_batch` returns for the pipeline's global batches."""
    sharding = by_batch(mesh)
    rows = {
        "image": ((batch_size, resolution, resolution, 3), np.uint8),
        "label": ((batch_size,), np.int32),
        "mask": ((batch_size,), np.float32),
    }
    return {
        key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for key, (shape, dtype) in rows.items()
    }
