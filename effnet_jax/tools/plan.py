"""Plans a run for TPUs, on a machine without one: memory, traffic, and the hours at best.

As in: effnet-jax plan --config=configs/imagenet.py:b7 --topology=v5e:4x4
           [--batch=N | --batch_per_chip=N] [--search=batch] [--json]

Compiles the real training step for the topology, which takes minutes. This needs libtpu but no TPU:
pip install -e '.[tpu-plan]', in an environment of its own. Several topologies, separated by commas,
are shown side by side. --search=batch finds the largest batch that fits. Hours are a bound, not a
promise: no step is faster than the chip's arithmetic and memory allow.
"""

import argparse
import functools
import json

from effnet_jax import config as config_lib
from effnet_jax import flags
from effnet_jax.planner import plan as planner
from effnet_jax.run import writers
from effnet_jax.tools import show

PARSER = flags.Parser(__doc__, config="imagenet", computes=False)
PARSER.add_argument("--topology", required=True, help="as in v5e:4x4; several with commas")
sizes = PARSER.add_mutually_exclusive_group()
sizes.add_argument("--batch", type=flags.count, metavar="N", help="instead of config.batch_size")
sizes.add_argument("--batch_per_chip", type=flags.count, metavar="N", help="the same for each chip")
PARSER.add_argument("--search", choices=["batch"], help="find the largest batch that fits")
PARSER.add_argument("--json", action="store_true", help="a list of objects instead of a table")


def main(args: argparse.Namespace) -> None:
    meshes = {name: planner.topology_mesh(name) for name in args.topology.split(",")}
    config, examples, origin = planner.with_data(args.config)
    writers.say(origin)
    if len(config_lib.stages(config)) > 1:
        writers.say("progressive learning: planned as if all epochs had the largest images")
    model = args.experiment.partition(":")[2] or "model"
    plans = []
    for topology, mesh in meshes.items():
        attempt = functools.partial(planner.plan, config, model, topology, examples)
        chips = mesh.size // planner.check_topology(topology).devices
        first = args.batch or (args.batch_per_chip or 0) * chips or config.batch_size
        if args.search:
            plans += planner.largest_batch(attempt, first, planner.batch_unit(config, mesh.size))
        else:
            plans.append(attempt(first))
    if args.json:
        print(json.dumps([planner.to_json(planned) for planned in plans], indent=2))
    else:
        show(planner.table(plans))
        print("At best: a bound from XLA's count of FLOPs and bytes; nothing was run.")
