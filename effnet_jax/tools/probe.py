"""Measures a network's features on a data set without training it: logistic regression and
nearest neighbours.

As in: effnet-jax probe --weights=lite0.safetensors --data_dir=DIR
       effnet-jax probe train.npz --test=test.npz

DIR has train/CLASS and val/CLASS, or CLASS alone, a tenth of which is then the test data; --data
takes a set as for eval, and --train_split and --test_split name its splits. FEATURES are files of
the command features; without --test a fifth of each class is the test data. Docs: docs/probe.md.
"""

import argparse
import pathlib
import time

import numpy as np
import rich.table

from effnet_jax import flags
from effnet_jax.errors import UserError
from effnet_jax.tools import features, show, track

PARSER = flags.Parser(__doc__, buckets=("csv",))
add = PARSER.add_argument
add("features", nargs="?", type=pathlib.Path, metavar="FEATURES", help="of the training data")
add("--test", type=pathlib.Path, metavar="FEATURES", help="of the test data")
add("--weights", metavar="FILE|WORKDIR", help="instead of files of features")
add("--train_split", help="of the data; by default train")
add("--test_split", help="of the data; by default the one that eval takes")
add("--metric", choices=("top1", "mean_per_class"), default="top1", help="that chooses the l2")
add("--csv", type=flags.path, metavar="FILE", help="add a row for each method to this file")
features.add_source(add)
SHARE = 0.2  # Of each class that is test data where features have no split.


def read(args: argparse.Namespace):
    """The training and the test features."""
    from effnet_jax import probe

    if (args.features is None) == (args.weights is None):
        raise UserError("give either FEATURES, a file of the command features, or --weights")
    if args.features is None:
        if args.test is not None:
            raise UserError("--test is a file of features, and --weights makes its own")
        found, config = features.load(args)
        if config.data.eval_split == ".":  # A folder of classes: some of each are held out.
            config.data.eval_split = "val"
        splits = args.train_split or config.data.train_split, args.test_split
        train = features.read(args, found, config, splits[0])
        return train, features.read(args, found, config, splits[1] or config.data.eval_split)
    of_data = ("data", "data_dir", "train_split", "test_split", "model", "origin", "classes")
    if given := [name for name in of_data if getattr(args, name) is not None]:
        raise UserError(f"--{given[0]} applies to --weights; features have their data")
    train = probe.load(args.features)
    return (train, probe.load(args.test)) if args.test else probe.split(train, SHARE)


def row(train, test, score) -> dict:
    """A row of results, for --csv."""
    from effnet_jax import csv_rows

    return {
        "data": test.data,
        "identity": test.identity,
        "train": train.data,
        "train_identity": train.identity,
        "train_count": len(train.labels),
        "weights": train.weights,
        "layer": train.layer,
        "size": train.features.shape[1],
        **vars(score),
        **csv_rows.describe_machine(),
    }


def main(args: argparse.Namespace) -> None:
    from effnet_jax import csv_rows, probe
    from effnet_jax.run.writers import say

    if args.csv:
        empty = probe.Features(np.zeros((0, 0)), np.zeros(0), (), (), *[""] * 4)
        csv_rows.check_append(args.csv, row(empty, empty, probe.Score("", "", 0, 0, None, 0)))
    train, test = read(args)
    test = probe.match(train, test)
    if both := len({*train.files} & {*test.files}):
        say(f"warning: {both:,} of the {len(test.labels):,} test images are training images too")
    start = time.perf_counter()
    found, notes = probe.fit_logistic(
        train, test, args.metric, lambda values: track(values, len(values), "logistic regression")
    )
    for note in notes:
        say(f"warning: logistic regression: {note}")
    say(f"logistic regression in {time.perf_counter() - start:.1f} s")
    scores = [found, *probe.nearest_neighbours(train, test)]
    print(f"{train.weights} {train.layer}: {train.data} -> {test.data}")
    table = rich.table.Table("method", "setting", "top-1", "mean per class", "loss", "images")
    for each in scores:
        loss = "" if each.loss is None else f"{each.loss:.4f}"
        shown = f"{each.top1:.2%}", f"{each.mean_per_class:.2%}", loss, f"{each.count:,}"
        table.add_row(each.method, each.setting, *shown)
    show(table)
    if args.csv:
        csv_rows.append_csv(args.csv, [row(train, test, each) for each in scores])
