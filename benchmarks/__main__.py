"""Measure speed on this machine: python -m benchmarks WHAT [--csv=FILE] [--json].

model     training and evaluation in images/s, and with the depthwise convolutions of jax.lax
data      the training pipeline of --config=FILE without a model, and the time of each of its parts
loop      the time that the training loop adds to the compiled step, and that of a save
latency   one image at a time on one core, for the models of the paper's Table 4
maps      activation maps, compared with predictions of the same images
freezing  training only the classifier, compared with training everything
waits     whole commands, from --help to the evaluation of 100 images, cold and warm

python -m benchmarks WHAT --help lists the flags.
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
    module.PARSER.add_argument("--json", action="store_true", help="JSON instead of a table")
    module.PARSER.add_argument("--csv", type=pathlib.Path, help="add the rows to this file")


def report(name: str, args: argparse.Namespace) -> None:
    """Run a benchmark, print its rows, and append them to --csv."""
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
        print(__doc__)
        sys.exit(cli.DONE if what in ("-h", "--help") else cli.BAD_INPUT)
    cli.run(functools.partial(report, what), BENCHMARKS[what].PARSER, arguments)


if __name__ == "__main__":
    main()
