"""What a run needs on TPUs, on a machine without one: memory, traffic, and the hours at best.

As in: python -m effnet_jax.tools.plan --config=configs/imagenet.py:b7 --topology=v5e:4x4
           [--batch=N | --batch_per_chip=N] [--search=batch] [--json]

Compiles the real training step for the topology, which takes minutes, and needs libtpu but no TPU:
pip install -e '.[tpu-plan]', in an environment of its own. Several topologies with commas are shown
side by side. --search=batch finds the largest batch that fits. Hours are a bound, not a promise: no
step is faster than the chip's arithmetic and memory allow.
"""

import json
import pathlib

import rich.console
from absl import flags
from ml_collections import ConfigDict, config_flags

from effnet_jax import cli
from effnet_jax import config as config_lib
from effnet_jax.errors import UserError, check_choice
from effnet_jax.planner import plan as planner
from effnet_jax.run import writers

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE or FILE:ARGUMENT; --config.key=value overrides."
)
TOPOLOGY = flags.DEFINE_string("topology", "", "As in v5e:4x4; several with commas.")
BATCH = flags.DEFINE_integer("batch", None, "Global batch, in place of config.batch_size.")
BATCH_PER_CHIP = flags.DEFINE_integer("batch_per_chip", None, "Global batch, for each chip.")
SEARCH = flags.DEFINE_string("search", "", "batch: find the largest that fits.")
JSON = flags.DEFINE_boolean("json", False, "A list of objects instead of a table.")


def batch_size(config: ConfigDict, chips: int) -> int:
    """The global batch that the flags and the config ask for."""
    if BATCH_PER_CHIP.value is not None:
        return BATCH_PER_CHIP.value * chips
    return config.batch_size if BATCH.value is None else BATCH.value


def main() -> None:
    if not TOPOLOGY.value:
        raise UserError("--topology is required, as in --topology=v5e:4x4")
    check_choice("--search", SEARCH.value, ("", "batch"))
    if BATCH.value is not None and BATCH_PER_CHIP.value is not None:
        raise UserError("give --batch or --batch_per_chip, not both")
    topologies = TOPOLOGY.value.split(",")
    meshes = [planner.topology_mesh(topology) for topology in topologies]
    config, examples, origin = planner.with_data(CONFIG.value)
    writers.say(origin)
    if len(config_lib.stages(config)) > 1:
        writers.say("a run in stages: planned as if all of it had the largest images")
    name = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2] or "model"

    plans = []
    for topology, mesh in zip(topologies, meshes, strict=True):

        def attempt(batch: int, topology: str = topology) -> planner.Plan:
            config.batch_size = batch
            return planner.plan(config, name, topology, examples)

        first = batch_size(config, mesh.size // planner.check_topology(topology).devices)
        if SEARCH.value:
            plans += planner.largest_batch(attempt, first, planner.batch_unit(config, mesh.size))
        else:
            plans.append(attempt(first))

    if JSON.value:
        print(json.dumps([planner.to_json(planned) for planned in plans], indent=2))
        return
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 40 + 36 * len(plans)  # A pipe has no width, and 80 would cut numbers.
    console.print(planner.table(plans))
    console.print("At best: a bound from XLA's count of FLOPs and bytes, nothing was run.")


if __name__ == "__main__":
    default = pathlib.Path(__file__).resolve().parents[2] / "configs" / "imagenet.py"
    cli.run_with_flags(main, default_config=str(default), computes=False)
