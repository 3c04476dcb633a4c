"""Measures how well a network's features classify a data set, without training the network.

Examples:
  effnet-jax probe --weights=lite0.safetensors --data_dir=DIR --csv=results/probe.csv
  effnet-jax probe train.npz --test=test.npz

Fits logistic regression and nearest neighbours to the features. DIR has train/CLASS and val/CLASS;
or CLASS alone, and a tenth of each class is then the test data. FEATURES are files that
`effnet-jax features` wrote; without --test a fifth of each class is the test data. Docs:
docs/probe.md.
"""

import argparse
import pathlib
import time

import numpy as np
import rich.table

from effnet_jax import flags
from effnet_jax.errors import UserError
from effnet_jax.tools import features, show, track

SHARE = 0.2  # Fraction of each class that is test data, for features without a split.
PARSER = flags.Parser(__doc__, buckets=("csv",))
add = PARSER.group("files of features")
training = "features of the training data"
add("features", nargs="?", type=pathlib.Path, metavar="FEATURES", help=training)
add("--test", type=pathlib.Path, metavar="FEATURES", help="features of the test data")
add = PARSER.group("or weights and a data set")
flags.add_weights(add)
flags.add_data(add)
add("--train_split", metavar="SPLIT", help="split of the training data (default: train)")
add("--test_split", metavar="SPLIT", help="split of the test data (default: the one of eval)")
features.add_layer(add)
add = PARSER.group("probe and output")
chosen_by = "metric that chooses the l2 of the regression"
add("--metric", choices=("top1", "mean_per_class"), default="top1", help=chosen_by)
add("--csv", type=flags.path, help=", one per method")


def read(args: argparse.Namespace):
    """Returns the training and the test features."""
    from effnet_jax import probe

    if (args.features is None) == (args.weights is None):
        raise UserError(
            "give either FEATURES, a file that `effnet-jax features` wrote, or --weights"
        )
    if args.features is None:
        if args.test is not None:
            raise UserError("--test applies to files of features: leave it out with --weights")
        found, config = features.load(args)
        if config.data.eval_split == ".":  # A folder of classes, some of whose images are held out.
            config.data.eval_split = "val"
        splits = args.train_split or config.data.train_split, args.test_split
        train = features.read(args, found, config, splits[0])
        return train, features.read(args, found, config, splits[1] or config.data.eval_split)
    of_data = ("data", "data_dir", "train_split", "test_split", "model", "origin", "classes")
    if given := [name for name in of_data if getattr(args, name) is not None]:
        raise UserError(f"--{given[0]} applies to --weights: leave it out with files of features")
    train = probe.load(args.features)
    return (train, probe.load(args.test)) if args.test else probe.split(train, SHARE)


def row(train, test, score) -> dict:
    """A row of results for --csv."""
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
