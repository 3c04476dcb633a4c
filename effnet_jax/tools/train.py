"""Trains a model.

As in: effnet-jax train --config=configs/imagenet.py:b0 --workdir=DIR [--config.batch_size=4096 ...]

The same command with the same workdir resumes where it stopped. Exit codes: 0 done, 2 bad input,
3 the loss was not finite, 75 interrupted and saved, 130 Ctrl-C with nothing to save. To train on
several machines, run the same command on each: see docs/processes.md.
"""

import argparse
import pathlib

from effnet_jax import flags

PARSER = flags.Parser(__doc__, config="digits", joins=True, buckets=("workdir", "config"))
where = "or gs://BUCKET/FOLDER; by default runs/NAME of the experiment"
PARSER.add_argument("--workdir", metavar="DIR", help=where)


def main(args: argparse.Namespace) -> None:
    import effnet_jax
    from effnet_jax.report import finish

    workdir = args.workdir or f"runs/{pathlib.Path(args.experiment.partition(':')[0]).stem}"
    state, scores = effnet_jax.train(args.config, workdir, processes=args.processes)
    if args.processes.is_first:
        finish.show(workdir, int(state.step), scores)
