"""Devices: one `data` axis over all of them, and what is laid out how."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effnet_jax.errors import UserError


def data_mesh() -> Mesh:
    """All devices in one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: parameters and all the rest of the state."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split over devices along the first axis: images, labels, mask."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where a global batch can't be split evenly over the devices."""
    if batch_size < 1 or batch_size % mesh.size:
        near = max(1, round(batch_size / mesh.size)) * mesh.size
        raise UserError(
            f"config.{key}={batch_size} does not divide by the {mesh.size} devices; "
            f"the nearest that does is {near}"
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
