"""Measures how fast this machine trains, evaluates, loads images and explains.

Examples:
  python -m benchmarks model --models b0 lite0 --csv=results/throughput.csv
  python -m benchmarks data --config=digits --json

model     training and evaluation in images/s, next to the same model with lax's depthwise layers
data      the training pipeline of --config=FILE, without a model, and where its time goes
loop      what the training loop adds to the compiled step, and the time of a save
latency   one image at a time on one core, for the models of the paper's Table 4
maps      activation maps, compared with predictions of the same images
freezing  training only the classifier, compared with training everything
waits     whole commands, from --help to the evaluation of 100 images, cold and warm

`python -m benchmarks NAME --help` lists the flags of a benchmark.
"""

import argparse
import functools
import json
import pathlib
import sys

from benchmarks import freezing, latency, loading, looping, maps, throughput, waits
from effnet_jax import cli, csv_rows
from effnet_jax.tools import show

# Each module has PARSER, `measure(args)`, which returns rows, and `show(rows)`, their table.
BENCHMARKS = {"model": throughput, "latency": latency, "data": loading, "loop": looping}
BENCHMARKS |= {"maps": maps, "freezing": freezing, "waits": waits}
for name, module in BENCHMARKS.items():
    module.PARSER.prog = f"python -m benchmarks {name}"
    add = module.PARSER.group("output")
    add("--json", action="store_true", help=" instead of a table")
    add("--csv", type=pathlib.Path)


def report(name: str, args: argparse.Namespace) -> None:
    """Measures, prints the rows, and adds them to --csv."""
    rows = BENCHMARKS[name].measure(args)
    if not rows:  # Of several processes, only the first has rows.
        return
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(BENCHMARKS[name].show(rows))
    if args.csv:
        csv_rows.append_csv(args.csv, rows)


def main() -> None:
    what, *arguments = sys.argv[1:] or ["--help"]
    if what not in BENCHMARKS:
        print(f"usage: python -m benchmarks NAME ...\n\n{__doc__.rstrip()}")
        sys.exit(cli.DONE if what in ("-h", "--help") else cli.BAD_INPUT)
    cli.run(functools.partial(report, what), BENCHMARKS[what].PARSER, arguments)


if __name__ == "__main__":
    main()
