"""How fast this machine is: python -m benchmarks WHAT [--csv=FILE].

model     training and evaluation in images/s, next to the same model with lax's depthwise layers
data      the training pipeline of --config=FILE, without a model, and what its time goes into
loop      what the training loop costs next to the compiled step, and a save
latency   one image at a time on one core, for the models of the paper's Table 4
"""

import argparse
import json
import pathlib

import rich.console

from benchmarks import latency, loading, looping, throughput
from effnet_jax import cli
from effnet_jax.errors import UserError
from effnet_jax.run import files

BENCHMARKS = {"model": throughput, "latency": latency, "data": loading, "loop": looping}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = parser.add_subparsers(dest="what", required=True)
    for name, module in BENCHMARKS.items():
        command = choices.add_parser(name, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="JSON instead of a table")
        command.add_argument("--csv", type=pathlib.Path, help="add the rows to this file")
    args, args.rest = parser.parse_known_args()
    if args.rest and args.what != "data":  # Which reads config flags.
        parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
    if args.repeats < 1:
        raise UserError(f"--repeats must be 1 or more; got {args.repeats}")

    benchmark = BENCHMARKS[args.what]
    rows = benchmark.measure(args)
    if not rows:  # Another process reports.
        return
    if args.csv:
        files.append_csv(args.csv, rows)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        rich.console.Console().print(benchmark.show(rows))


if __name__ == "__main__":
    cli.run(main)
