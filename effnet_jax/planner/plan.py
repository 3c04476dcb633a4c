"""The memory, traffic and best possible speed of a training step on TPUs, without any TPU.

The planner compiles the step of a run (`training.step.lower_train_step`) for a topology with the
TPU compiler, libtpu, which needs no TPU. Memory and collectives are those of the program that would
run. The speed is an upper bound: it assumes that only the chip's arithmetic or memory limits the
step, and that data is always ready.
"""

import dataclasses
import importlib.util
import itertools
import math
import operator
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import rich.table
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import parallel
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.planner import program
from effnet_jax.run import writers
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training import progressive
from effnet_jax.training.state import abstract_state
from effnet_jax.training.step import lower_train_step

GIB = 2**30
FLAT = "2x2 4x4 4x8 8x8 8x16 16x16"
CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16"


class Chip(NamedTuple):
    """A chip of one generation of TPUs.

    Speeds and shapes: cloud.google.com/tpu/docs/{v3,v4,v5e,tpu7x}; the last also has v5p and v6e.
    v2: Norrie et al. 2021, "The Design Process for Google's Training Chips: TPUv2 and TPUv3".
    Memory: what libtpu 0.0.42 lets a program use, which is slightly less than the chip has.
    """

    hbm: float  # Memory that a program may use, in GiB.
    flops: float  # Peak bfloat16 FLOP/s.
    bandwidth: float  # Peak bytes/s from and to memory.
    devices: int  # JAX devices per chip; they share all of the above equally.
    shapes: str  # Shapes of slices; three-dimensional ones only up to 1024 chips.


CHIPS = {
    "v2": Chip(14.96, 46e12, 700e9, 2, FLAT),
    "v3": Chip(30.96, 123e12, 900e9, 2, f"{FLAT} 16x32 32x32"),
    "v4": Chip(30.75, 275e12, 1200e9, 1, CUBES),
    "v5e": Chip(15.75, 197e12, 819e9, 1, f"1x1 2x4 {FLAT}"),
    "v5p": Chip(95.73, 459e12, 2765e9, 1, CUBES),
    "v6e": Chip(31.25, 918e12, 1638e9, 1, f"1x1 2x4 {FLAT}"),
    "tpu7x": Chip(189.5, 2307e12, 7380e9, 2, CUBES),
}

# Config keys that determine memory and traffic; the table shows their values.
CHOICES = (
    "model.dtype",
    "model.remat",
    "model.batch_norm_scope",
    "accumulation_steps",
    "optimizer.sharded",
    "mesh.model",
)


@dataclasses.dataclass(frozen=True)
class Program:
    """The costs of a compiled training step on one device."""

    state_bytes: int  # Parameters, statistics, averages and the optimizer's state.
    flops: float  # As counted by XLA.
    moved_bytes: float  # Between chip and memory.
    collectives: dict[str, tuple[int, int]]  # Count and bytes of the results, by kind.
    seconds_at_best: float
    bound: str  # What limits the step: "arithmetic" or "memory".


@dataclasses.dataclass(frozen=True)
class Plan:
    """The costs of a run on a topology."""

    model: str
    resolution: int  # In pixels.
    choices: dict[str, str | int | bool]  # The config's values of CHOICES by key.
    topology: str  # For example v5e:4x4.
    devices: int
    devices_per_chip: int
    batch_size: int  # Images per step over all devices.
    parameters: int
    epochs: float
    examples: int  # Training images.
    hbm_bytes: int  # Memory that a program may use on one device.
    memory_bytes: int  # What the program uses or, if it doesn't fit, requests; state and code too.
    program: Program | None  # None if it doesn't fit.
    compile_seconds: float

    @property
    def images_per_second(self) -> float:
        """The upper bound over all devices; 0 if the program does not fit."""
        return self.batch_size / self.program.seconds_at_best if self.program else 0.0

    @property
    def hours(self) -> float | None:
        """The lower bound for the training steps of all epochs; None if the program doesn't fit."""
        images = self.epochs * self.examples
        return images / self.images_per_second / 3600 if self.program else None


def roofline(flops: float, moved_bytes: float, chip: Chip) -> tuple[float, str]:
    """The least seconds that this work takes on one device, and which of the two limits it.

    Arithmetic and transfers overlap at best, so the slower one is the limit (Williams et al. 2009,
    "Roofline").
    """
    arithmetic = flops / (chip.flops / chip.devices)
    memory = moved_bytes / (chip.bandwidth / chip.devices)
    return max((arithmetic, "arithmetic"), (memory, "memory"))


def check_topology(name: str) -> Chip:
    """The chip of a topology such as "v5e:4x4"; for an unknown one, UserError lists those known."""
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        known = "".join(f"\n  {key}: {chip.shapes}" for key, chip in CHIPS.items())
        raise UserError(f"unknown --topology={name}; use one such as v5e:4x4, out of{known}")
    shapes = CHIPS[generation].shapes.split()
    if shape not in shapes:
        names = ", ".join(f"{generation}:{each}" for each in shapes)
        raise UserError(f"unknown --topology={name}; {generation} has {names}")
    return CHIPS[generation]


def topology_mesh(name: str) -> Mesh:
    """`parallel.data_mesh` for the devices of a topology, which are only descriptions."""
    check_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning needs libtpu, the compiler for TPUs, which is not installed; in a separate "
            "environment, run pip install -e '.[tpu-plan]'"
        )
    os.environ |= {
        # Without these, libtpu looks for a TPU on this machine and warns.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Several processes may compile at the same time.
    }
    jax.config.update("jax_platforms", "cpu")
    # A program for absent devices can be written to the cache but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    options = {}
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # One device per chip, as on TPU VMs.
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return parallel.data_mesh(described.devices)


def with_data(config: ConfigDict) -> tuple[ConfigDict, int, str]:
    """A copy of the config with the number of classes, the number of images, and a line on both.

    For ImageNet the numbers are known, so the data may be missing; other data is opened.
    """
    config = config.copy_and_resolve_references()
    if config.data.source == "tfds" and config.data.name.partition(":")[0] == imagenet.NAME:
        examples, classes = imagenet.IMAGES[imagenet.TRAIN], imagenet.CLASSES
        origin = "assumed, without looking at the data"
    else:
        source = sources.open_source(config.data, config.data.train_split)
        examples, classes = len(source), len(source.classes)
        origin = "found in the data"
    if config.model.num_classes is None:
        config.model.num_classes = classes
    return config, examples, f"{examples:,} training images, {classes:,} classes: {origin}"


def demanded_bytes(message: str) -> int | None:
    """The bytes of memory that a compiler error says were requested; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    # "... temporaries (64.00G) exceeds available HBM (15.75G)", "Used 20.51G of 15.75G hbm".
    match = re.search(r"(?:\(|Used )([\d.]+)([KMGT])\)? (?:exceeds|of)", message)
    return round(float(match[1]) * 1024 ** (" KMGT".index(match[2]))) if match else None


def plan(
    config: ConfigDict,
    name: str,
    topology: str,
    examples: int,
    batch_size: int,
    memory_mib: int | None = None,
) -> Plan:
    """Compile the training step for a topology, which takes minutes.

    With progressive learning, all epochs are assumed to have the largest images.

    Args:
      config: the whole config, with the number of classes; its batch size is ignored.
      name: of the model, for messages.
      topology: see `check_topology`.
      examples: training images in an epoch.
      batch_size: images per step over all devices.
      memory_mib: MiB that the program may use on each device; None: all of the chip's. libtpu packs
        arrays loosely while memory is plentiful, so a program may fit into less than it reserves.
    """
    chip, mesh = check_topology(topology), topology_mesh(topology)
    mesh = parallel.with_model_axis(mesh, config)
    config = config.copy_and_resolve_references()
    config.batch_size = batch_size
    config_lib.validate(config, parallel.data_shards(mesh))
    config = progressive.largest(config)
    model, _, shapes = abstract_state(config, examples)
    writers.say(f"compiling {name}, batch {batch_size:,}, for {topology} ...")
    options = {"xla_tpu_max_hbm_size_mib": str(memory_mib)} if memory_mib else None
    start = time.perf_counter()
    try:
        lowered = lower_train_step(model, shapes, config, examples, mesh)
        compiled = lowered.compile(compiler_options=options)
        used, made = _figures(compiled, chip, config.accumulation_steps)
    except jax.errors.JaxRuntimeError as error:
        used, made = demanded_bytes(str(error)), None
        if used is None:
            raise
    seconds = time.perf_counter() - start
    writers.say(f"... {'compiled' if made else 'does not fit'}: {seconds:.0f} s")
    return Plan(
        model=name,
        resolution=model.architecture.resolution,
        choices={key: operator.attrgetter(key)(config) for key in CHOICES},
        topology=topology,
        devices=mesh.size,
        devices_per_chip=chip.devices,
        batch_size=batch_size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
        epochs=optimizers.epochs(config, examples),
        examples=examples,
        hbm_bytes=memory_mib * 2**20 if memory_mib else round(chip.hbm * GIB / chip.devices),
        memory_bytes=used,
        program=made,
        compile_seconds=round(seconds, 1),
    )


def _figures(compiled: jax.stages.Compiled, chip: Chip, microbatches: int) -> tuple[int, Program]:
    """The bytes that a compiled step reserves on one device, and its costs."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    state = memory.alias_size_in_bytes  # All donated arrays, which are arguments and outputs.
    # `peak_memory_in_bytes` would be too small: it leaves out gaps between arrays.
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    reserved = arrays - state + memory.generated_code_size_in_bytes
    exchanged = {}
    for each in program.collectives(text):
        count, size = exchanged.get(each.kind, (0, 0))
        times = microbatches if each.in_loop else 1
        exchanged[each.kind] = count + times, size + times * each.bytes
    # XLA counts for one device, and counts the body of a loop once. The microbatches are a loop;
    # the update outside it is small compared with the passes of one microbatch.
    flops = microbatches * cost["flops"]
    # Both counts include some bytes too often.
    moved = min(program.memory_traffic(text, microbatches), microbatches * cost["bytes accessed"])
    return reserved, Program(state, flops, moved, exchanged, *roofline(flops, moved, chip))


def batch_unit(config: ConfigDict, devices: int) -> int:
    """The number that a batch size must be a multiple of.

    Each microbatch on each device has whole BatchNorm groups, and the batch whole mixing groups.
    """
    grouped = config.model.batch_norm_scope == "group"
    unit = devices * config.accumulation_steps * (config.model.batch_norm_group if grouped else 1)
    return math.lcm(unit, config.augment.mix_group or 1)


def largest_batch(attempt: Callable[[int], Plan], start: int, unit: int) -> tuple[Plan, Plan]:
    """The plans with the largest batch found to fit and the smallest found not to fit.

    The two batches differ by at most one unit or 1/32. The first guesses assume that memory grows
    linearly with the batch; then the interval is halved. Raises UserError if one unit doesn't fit.

    Args:
      attempt: returns the plan for a batch size.
      start: the first batch size to try.
      unit: every batch size is a multiple of it; see `batch_unit`.
    """
    good, bad, batch = None, None, max(start // unit, 1) * unit
    for number in itertools.count(1):
        planned = attempt(batch)
        good, bad = (planned, bad) if planned.program else (good, planned)
        low, high = good.batch_size if good else 0, bad.batch_size if bad else math.inf
        if high - low <= max(unit, low // 32):
            break
        step = max(unit, low // 32 // unit * unit)
        if number <= 3:
            state = good.program.state_bytes if good else 0
            line = batch * (planned.hbm_bytes - state) / (planned.memory_bytes - state)
            batch = max(low + step, min(int(line) // unit * unit, high - step))
        else:
            batch = (low + min(high, 3 * low)) // 2 // unit * unit
    if good is None:
        raise UserError(
            f"not even a batch of {bad.batch_size} fits {bad.topology}: {bad.model} at "
            f"{bad.resolution} px needs {bad.memory_bytes / GIB:.2f} of {bad.hbm_bytes / GIB:.2f} "
            "GiB per device; to save memory, use --config.model.remat=block and "
            "--config.optimizer.sharded=True or --config.mesh.model=N"
        )
    return good, bad


def to_json(planned: Plan) -> dict[str, Any]:
    """The attributes of a plan, with its bounds on speed and hours."""
    return dataclasses.asdict(planned) | {
        "images_per_second_at_best": planned.images_per_second,
        "hours_at_best": planned.hours,
    }


def table(plans: Sequence[Plan]) -> rich.table.Table:
    """A table of plans side by side."""
    columns = [_column(each) for each in plans]
    title = f"{plans[0].model}, {plans[0].resolution} px"
    result = rich.table.Table(title, *(each.topology for each in plans))
    for name in max(columns, key=len):
        result.add_row(name, *(column.get(name, "-") for column in columns))
    return result


def _column(planned: Plan) -> dict[str, str]:
    """The cells of a plan by the name of their row; those about speed only if it fits."""
    a_device = planned.batch_size // planned.devices
    chips = planned.devices // planned.devices_per_chip
    used, most, made = planned.memory_bytes, planned.hbm_bytes, planned.program
    memory = f"{used / GIB:.2f} of {most / GIB:.2f} GiB, {used / most:.0%}"
    shown = {key: str(value) for key, value in planned.choices.items()} | {
        "chips": f"{chips}" if chips == planned.devices else f"{chips}, {planned.devices} devices",
        "batch": f"{planned.batch_size:,}, {a_device:,} per device",
        "parameters": f"{planned.parameters:,}",
        "memory per device": memory if made else f"{memory}: DOES NOT FIT",
    }
    if not made:
        return shown
    kinds = made.collectives.items()
    exchanged = [f"{count} {kind}, {size / 1e6:.1f} MB" for kind, (count, size) in kinds]
    return shown | {
        "state per device": f"{made.state_bytes / GIB:.2f} GiB",
        "FLOPs per step and device": f"{made.flops / 1e12:.3f} T",
        "bytes per step and device": f"{made.moved_bytes / 1e9:.2f} GB",
        "bytes per image": f"{made.moved_bytes / a_device / 1e6:.0f} MB",
        "collectives per step": "\n".join(exchanged) or "none",
        "step, at best": f"{made.seconds_at_best * 1e3:.1f} ms, limited by {made.bound}",
        "images/s per chip, at best": f"{planned.images_per_second / chips:,.0f}",
        "images/s, at best": f"{planned.images_per_second:,.0f}",
        f"{planned.epochs:g} epochs, at best": f"{planned.hours:,.1f} hours",
    }
