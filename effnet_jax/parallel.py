"""The mesh and the shardings of arrays over it.

The mesh has one axis, "data", over all devices; or two, "data" and "model", with the state split
over "model" (FSDP). A batch is always split over all devices.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from effnet_jax.errors import UserError

PyTree = Any


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "data", over `devices`, by default all of the run."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def with_model_axis(mesh: Mesh, config: ConfigDict) -> Mesh:
    """The mesh with axes "data" and "model" by `config.mesh`, with the devices in the same order.

    Returns `mesh` itself if `model` is 1. Raises UserError if the axes don't cover all devices.
    """
    data, model, count = config.mesh.data, config.mesh.model, mesh.size
    if model < 1 or count % model or (data or count // model) * model != count:
        sizes = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        given = f"config.mesh.data={data} and " if data else ""
        raise UserError(
            f"{given}config.mesh.model={model} do not divide {count} devices; use a model out of "
            f"{sizes}, and leave out data, which is computed"
        )
    if model > 1 and config.optimizer.sharded:
        raise UserError(
            f"config.optimizer.sharded=True and config.mesh.model={model} both split the "
            "optimizer's state; set one of them"
        )
    if model == 1:
        return mesh
    devices = mesh.devices.reshape(-1, model)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def splits_state(mesh: Mesh) -> bool:
    """Whether parameters, optimizer state and averages are split over the axis "model"."""
    return "model" in mesh.axis_names


def data_shards(mesh: Mesh) -> int:
    """The number of equal shards of a batch."""
    return mesh.size


def grouped(mesh: Mesh, members: int) -> Mesh:
    """The mesh with axes "group" and "member" instead of "data": groups of `members` shards."""
    devices = mesh.devices.reshape(-1, members)
    return Mesh(devices, ("group", "member"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device, as for parameters."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Split over devices along the first axis, as for images, labels and mask."""
    axes = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(axes if len(axes) > 1 else axes[0]))


LEAST_SPLIT = 1024  # With fewer elements per device, communication outweighs the memory saved.


def shard_largest_axis(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Shardings that split each array over the mesh's last axis.

    An array is split along its longest axis that divides evenly. Small arrays, and those without
    such an axis, are whole on every device.
    """

    name = mesh.axis_names[-1]
    count = mesh.shape[name]

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        lengths = {n: axis for axis, n in enumerate(leaf.shape) if n % count == 0}
        if not lengths or leaf.size < LEAST_SPLIT * count:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * lengths[max(lengths)], name))

    return jax.tree.map(sharding, shapes)


def state_sharding(shapes: PyTree, mesh: Mesh, sharded: bool) -> PyTree:
    """A sharding for every array of a `TrainState` with these shapes.

    If `sharded`, optimizer state and averages are split by `shard_largest_axis` (ZeRO, stage 1:
    arXiv 1910.02054); on a mesh with the axis "model" so are parameters (stage 3, FSDP). Everything
    else is whole on every device.
    """
    whole = jax.tree.map(lambda _: replicated(mesh), shapes)
    keys = ("opt_state", "ema") * (sharded or splits_state(mesh))
    keys += ("params",) * splits_state(mesh)
    return whole.replace(**{key: shard_largest_axis(getattr(shapes, key), mesh) for key in keys})


def describe_mesh(mesh: Mesh) -> list[str]:
    """A line about a mesh with the axis "model"; no line about a mesh of one axis."""
    if not splits_state(mesh):
        return []
    data, model = mesh.shape["data"], mesh.shape["model"]
    return [f"mesh: {data} x {model} devices (data x model); each keeps 1/{model} of large arrays"]


def abstract(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with shardings: one for all, or a tree of them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        jax.tree.broadcast(shardings, shapes),
    )


def check_batch(key: str, batch_size: int, devices: int, microbatches: int = 1) -> None:
    """Raises UserError if a global batch can't be split evenly over devices and microbatches."""
    pieces = devices * microbatches
    if batch_size < 1 or batch_size % pieces:
        nearest = max(1, round(batch_size / pieces)) * pieces
        each = f" in {microbatches} microbatches each (config.accumulation_steps)"
        raise UserError(
            f"config.{key}={batch_size} is not divisible by {devices} devices"
            f"{each if microbatches > 1 else ''}; use {nearest}"
        )


def check_processes(examples: int, split: str) -> None:
    """Raises UserError if there are more processes than records, or they differ in devices."""
    processes, devices = jax.process_count(), jax.device_count()
    if examples < processes:
        raise UserError(
            f"the {split} data has {examples} records for {processes} processes; use at most "
            f"{examples} processes"
        )
    if devices != processes * jax.local_device_count():
        raise UserError(
            f"this process has {jax.local_device_count()} of the {devices} devices of {processes} "
            "processes; give every process the same number"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices, as part of global arrays."""
    put = functools.partial(jax.make_array_from_process_local_data, by_batch(mesh))
    return {key: put(value) for key, value in batch.items()}


def abstract_batch(batch_size: int, resolution: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of what `put_batch` returns for the pipeline's batches."""
    array = functools.partial(jax.ShapeDtypeStruct, sharding=by_batch(mesh))
    return {
        "image": array((batch_size, resolution, resolution, 3), np.uint8),
        "label": array((batch_size,), np.int32),
        "mask": array((batch_size,), np.float32),
    }


def batch_norm_group(config: ConfigDict, devices: int) -> int:
    """The number of consecutive examples that share BatchNorm's statistics in training.

    The scope "reference" is the rule of tensorflow/tpu models/official/efficientnet/utils.py,
    TpuBatchNormalization, and "reference_v2" that of google/automl efficientnetv2/utils.py; their
    shards are devices here. Raises UserError if the size doesn't divide the batch or microbatch, or
    is neither a divisor nor a multiple of a device's examples.
    """
    scope, group = config.model.batch_norm_scope, config.model.batch_norm_group
    examples = config.batch_size // config.accumulation_steps
    each = examples // devices
    if scope == "global":
        return examples
    if scope in ("reference", "reference_v2"):
        few, many = (1, max(8, devices // 8)) if scope == "reference" else (devices, 8)
        together = few if devices <= 8 else many
        if devices % together:
            raise UserError(
                f"config.model.batch_norm_scope={scope!r} has groups of {together} devices, and "
                f"{devices} devices are not divisible by {together}; use a multiple of 8 devices, "
                "or the scope 'group' or 'global'"
            )
        return together * each
    divisors = (size for size in range(1, examples + 1) if examples % size == 0)
    sizes = [size for size in divisors if each % size == 0 or size % each == 0]
    if group not in sizes:
        nearest = min(sizes, key=lambda size: abs(size - group))
        raise UserError(
            f"config.model.batch_norm_group={group} does not divide the {each} examples that each "
            f"of {devices} devices has at a time, and is no multiple of them that divides all "
            f"{examples}; use {nearest}"
        )
    return group


def describe_batch_norm(config: ConfigDict, devices: int) -> list[str]:
    """A line about the resulting groups; no line for one device with groups of a whole batch."""
    count, scope = config.accumulation_steps, config.model.batch_norm_scope
    group, examples = batch_norm_group(config, devices), config.batch_size // count
    if devices == 1 and group == config.batch_size:
        return []
    part = f" at a time, in {count} microbatches" if count > 1 else ""
    rule = {"global": "all", "group": "as set"}.get(scope, f"{scope} rule")
    where = f"{devices} device{'s' * (devices > 1)}"
    return [f"BatchNorm over groups of {group} of {examples} examples{part} ({rule}, {where})"]
