"""The most probable classes of images, by weights of ours or of others.

As in: effnet-jax predict cat.jpg photos/ 'more/*.png' --weights=lite0.safetensors

IMAGE is a file, a folder, whose images are taken at any depth, a pattern with *, ** or ?, or - for
an image on the standard input. --weights is a file of weights, the workdir of a run, hf://ORG/NAME,
or a file of `effnet-jax export`. Crop, resizing, normalisation and classes are the weights' own;
--model, --origin and --classes state what a file doesn't, as for convert. --top=N sets how many
classes are shown; --json prints an object for each image: image, and predictions, each with label,
class, name and probability; --csv prints a row for each prediction. An image that can't be read is
reported on stderr, the others are classified, and the exit code is 1.
"""

import argparse
import csv
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table

from effnet_jax import flags
from effnet_jax.errors import ImagesFailed, UserError
from effnet_jax.tools import show

BATCH = 16  # Most images in a batch.
PARSER = flags.Parser(__doc__)
PARSER.add_argument("images", nargs="+", metavar="IMAGE")
PARSER.add_argument("--weights", required=True, metavar="FILE|WORKDIR")
for name in ("model", "origin", "classes"):
    PARSER.add_argument(f"--{name}", help="of weights that don't state it; see convert")
PARSER.add_argument("--top", type=flags.count, default=5, help="classes of each image")
FORMAT = PARSER.add_mutually_exclusive_group()
FORMAT.add_argument("--json", action="store_true", help="a line of JSON for each image")
FORMAT.add_argument("--csv", action="store_true", help="a row for each image and class")
COLUMNS = ("image", "label", "class", "name", "probability")  # Of --csv.


def readable(paths: Iterable[str], pixels: Callable[[bytes], np.ndarray], bad: list[str]):
    """Pairs of a path and its pixels; reports paths that can't be read and adds them to `bad`."""
    from effnet_jax.data.preprocess import content

    for path in paths:
        try:
            yield path, pixels(sys.stdin.buffer.read() if path == "-" else content(path))
        except (OSError, ValueError) as error:
            print(f"can't read {path}: {getattr(error, 'strerror', error)}", file=sys.stderr)
            bad.append(path)


def classify_all(
    images: Iterator[tuple[str, np.ndarray]], classify: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs of a path and its probabilities, in batches of 1, 2, 4, 8 or 16: few are compiled."""
    while chunk := list(itertools.islice(images, BATCH)):
        paths, pixels = zip(*chunk, strict=True)
        batch = np.zeros((1 << (len(pixels) - 1).bit_length(), *pixels[0].shape), np.uint8)
        batch[: len(pixels)] = pixels
        yield from zip(paths, np.asarray(classify(batch)), strict=False)


def best(
    probabilities: np.ndarray, classes: Sequence[str], titles: dict[str, str], top: int
) -> list[dict[str, Any]]:
    """The most probable classes, best first; raises UserError for probabilities that are NaN."""
    if not np.isfinite(probabilities).all():
        raise UserError("the network's outputs are not finite, as after training diverged")
    return [
        {
            "label": label,
            "class": classes[label],
            "name": titles.get(classes[label], classes[label]),
            "probability": round(float(probabilities[label]), 6),
        }
        for label in np.argsort(-probabilities, kind="stable")[:top].tolist()
    ]


def table(results: Iterable[tuple[str, list[dict[str, Any]]]]) -> rich.table.Table:
    """A section for each image; with a column for the names of classes that have others."""
    results = list(results)
    named = any(row["name"] != row["class"] for _, rows in results for row in rows)
    columns = ("name", "class") if named else ("class",)
    shown = rich.table.Table("image", "probability", *columns)
    for path, rows in results:
        for number, row in enumerate(rows):
            cells = ("" if number else path, f"{row['probability']:.1%}")
            shown.add_row(*cells, *(row[key] for key in columns), end_section=row is rows[-1])
    return shown


def track(paths: Sequence[str], streams: bool) -> Iterable[str]:
    """The paths, with a display on stderr if they are many and both can be seen."""
    shown = len(paths) > BATCH and not (streams and sys.stdout.isatty())
    console = rich.console.Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    return rich.progress.track(paths, "images", console=console, disable=hidden, transient=True)


def open_network(args: argparse.Namespace) -> tuple[Any, Sequence[str], Callable]:
    """The preprocessing, the classes, and uint8 images -> probabilities."""
    import jax

    from effnet_jax import export, models, weights
    from effnet_jax.data.preprocess import Preprocess, normalize

    own = args.model, args.origin, args.classes
    if pathlib.Path(args.weights).suffix in export.FORMATS:
        if own != (None, None, None):
            raise UserError(f"{args.weights} states its model and classes: leave these flags out")
        exported = export.read(args.weights)
        return exported.preprocess, exported.classes, exported.probabilities
    found = weights.load(args.weights, *own)
    model, preprocess = models.build(found.config), Preprocess(**found.preprocess)

    @jax.jit
    def classify(variables, images):
        images = normalize(images, preprocess.mean, preprocess.std)
        return jax.nn.softmax(model.apply(variables, images, train=False)[0])

    variables = jax.device_put(found.variables)
    return preprocess, found.classes, functools.partial(classify, variables)


def main(args: argparse.Namespace) -> None:
    from effnet_jax.data.folders import list_images
    from effnet_jax.imagenet.dataset import titles

    paths, bad = list_images(args.images), []
    preprocess, classes, classify = open_network(args)
    tracked = track(paths, streams=args.json or args.csv)
    classified = classify_all(readable(tracked, preprocess.pixels, bad), classify)
    results = ((path, best(p, classes, titles(), args.top)) for path, p in classified)
    if args.json:
        for path, rows in results:
            print(json.dumps({"image": path, "predictions": rows}), flush=True)
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for path, rows in results:
            writer.writerows({"image": path, **row} for row in rows)
            sys.stdout.flush()
    elif (shown := table(results)).rows:
        show(shown)
    if bad:
        raise ImagesFailed(f"{len(bad)} of {len(paths)} images could not be read")
