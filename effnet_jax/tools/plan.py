"""Plans a run for TPUs, on a machine without one: memory, traffic, and the hours at best.

As in: effnet-jax plan --config=configs/imagenet.py:b7 --topology=v5e:4x4
           [--batch=N | --batch_per_chip=N] [--search=batch] [--json]

Compiles the real training step for the topology, which takes minutes. This needs libtpu but no TPU:
pip install -e '.[tpu-plan]', in an environment of its own. Several topologies, separated by commas,
are shown side by side. --search=batch finds the largest batch that fits. Hours are a bound, not a
promise: no step is faster than the chip's arithmetic and memory allow.
"""

import argparse
import json

import rich.console

from effnet_jax import cli, flags
from effnet_jax import config as config_lib
from effnet_jax.planner import plan as planner
from effnet_jax.run import writers

PARSER = flags.Parser(__doc__, config="imagenet", computes=False)
PARSER.add_argument("--topology", required=True, help="as in v5e:4x4; several with commas")
sizes = PARSER.add_mutually_exclusive_group()
sizes.add_argument("--batch", type=flags.count, metavar="N", help="instead of config.batch_size")
sizes.add_argument("--batch_per_chip", type=flags.count, metavar="N", help="the same for each chip")
PARSER.add_argument("--search", choices=["batch"], help="find the largest batch that fits")
PARSER.add_argument("--json", action="store_true", help="a list of objects instead of a table")


def main(args: argparse.Namespace) -> None:
    topologies = args.topology.split(",")
    meshes = [planner.topology_mesh(topology) for topology in topologies]
    config, examples, origin = planner.with_data(args.config)
    writers.say(origin)
    if len(config_lib.stages(config)) > 1:
        writers.say("progressive learning: planned as if all epochs had the largest images")
    name = args.experiment.partition(":")[2] or "model"

    plans = []
    for topology, mesh in zip(topologies, meshes, strict=True):

        def attempt(batch: int, topology: str = topology) -> planner.Plan:
            config.batch_size = batch
            return planner.plan(config, name, topology, examples)

        first = args.batch or config.batch_size
        if args.batch_per_chip:
            chips = mesh.size // planner.check_topology(topology).devices
            first = args.batch_per_chip * chips
        if args.search:
            plans += planner.largest_batch(attempt, first, planner.batch_unit(config, mesh.size))
        else:
            plans.append(attempt(first))

    if args.json:
        print(json.dumps([planner.to_json(planned) for planned in plans], indent=2))
        return
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 40 + 36 * len(plans)  # A pipe has no width, and 80 would cut numbers.
    console.print(planner.table(plans))
    console.print("At best: a bound from XLA's count of FLOPs and bytes; nothing was run.")


if __name__ == "__main__":
    cli.run(main, PARSER)
