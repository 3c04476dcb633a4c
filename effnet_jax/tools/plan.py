"""Plans a run on TPUs without having one: memory, traffic, and a lower bound on the hours.

Examples:
  effnet-jax plan --config=configs/imagenet.py:b7 --topology=v5e:4x4 --batch_per_chip=16
  effnet-jax plan --config=configs/imagenet.py:b0 --topology=v5e:2x2,v5e:4x4 --search=batch

Compiles the real training step for the topology, which takes minutes. This needs libtpu, but no
TPU: pip install -e '.[tpu-plan]' in an environment of its own. The hours are a lower bound: no step
is faster than the arithmetic and the memory of the chip allow.
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
add = PARSER.group("hardware")
topologies = "TPU topology, such as v5e:4x4; several, separated by commas, are shown side by side"
add("--topology", required=True, help=topologies)
limit = "memory that the program may use on each device, in MiB (default: all of the chip's)"
add("--memory", type=flags.count, metavar="MIB", help=limit)
add = PARSER.group("batch size (default: config.batch_size)", exclusive=True)
add("--batch", type=flags.count)
add("--batch_per_chip", type=flags.count, metavar="N", help="images in the batch of each chip")
add = PARSER.group("plan")
add("--search", choices=["batch"], help="find the largest batch that fits")
add("--json", action="store_true", help=" instead of a table")


def main(args: argparse.Namespace) -> None:
    meshes = {name: planner.topology_mesh(name) for name in args.topology.split(",")}
    config, examples, origin = planner.with_data(args.config)
    writers.say(origin)
    if len(config_lib.stages(config)) > 1:
        writers.say("progressive learning: the plan assumes the largest images in all epochs")
    model = args.experiment.partition(":")[2] or "model"
    plans = []
    for topology, mesh in meshes.items():
        attempt = functools.partial(
            planner.plan, config, model, topology, examples, memory_mib=args.memory
        )
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
        print('"At best" is a bound from XLA\'s count of FLOPs and bytes; nothing was run.')
