"""Trains a model from scratch or from other weights, or resumes a run.

Examples:
  effnet-jax train --config=digits --workdir=runs/digits
  effnet-jax train --config=imagenet:b0 --config.batch_size=4096 --workdir=gs://BUCKET/b0

The same command with the same workdir resumes the run. To train on several machines, start the same
command on each of them: see docs/processes.md. In a checkout, `python train.py` is the same
command.

Exit codes: 0 done, 2 bad input, 3 the loss was not finite, 75 interrupted after saving a
checkpoint, 130 Ctrl-C with nothing to save.
"""

import argparse
import pathlib

from effnet_jax import flags

PARSER = flags.Parser(__doc__, config="digits", joins=True, buckets=("workdir", "config"))
place = ", or gs://BUCKET/FOLDER (default: runs/NAME of the experiment)"
PARSER.group("output")("--workdir", help=place)


def main(args: argparse.Namespace) -> None:
    import effnet_jax
    from effnet_jax.report import finish

    workdir = args.workdir or f"runs/{pathlib.Path(args.experiment.partition(':')[0]).stem}"
    state, scores = effnet_jax.train(args.config, workdir, processes=args.processes)
    if args.processes.is_first:
        finish.show(workdir, int(state.step), scores)
