"""Lists the most probable classes of images.

Examples:
  effnet-jax predict cat.jpg photos/ 'more/*.png' --weights=lite0.safetensors
  effnet-jax predict photos/ --weights=runs/mine --top=1 --print_csv

Folders are searched for images at any depth. --weights can also be a file that `effnet-jax export`
wrote. Crop, resizing, normalisation and classes are those of the weights.

--json prints an object for each image: image, and predictions, each with label, class, name and
probability. --print_csv prints a row for each prediction. An image that can't be read is reported
on stderr; the others are classified, and the exit code is 1.
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

BATCH = 16  # Maximum number of images in a batch.
COLUMNS = ("image", "label", "class", "name", "probability")  # Of --print_csv.
PARSER = flags.Parser(__doc__)
add = PARSER.group("input")
add("images", nargs="+")
flags.add_weights(add, required=True)
PARSER.group("output")("--top", type=flags.count, default=5, help=" to list")
add = PARSER.group("format (default: a table)", exclusive=True)
add("--json", action="store_true", help=", a line for each image")
add("--print_csv", action="store_true", help="print CSV, a row for each image and class")


def readable(paths: Iterable[str], pixels: Callable[[bytes], np.ndarray], bad: list[str]):
    """Yields pairs of a path and its pixels; reports unreadable images and adds them to `bad`."""
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
    """Yields pairs of a path and its probabilities.

    Batches have 1, 2, 4, 8 or 16 images, so that few programs are compiled.
    """
    while chunk := list(itertools.islice(images, BATCH)):
        paths, pixels = zip(*chunk, strict=True)
        batch = np.zeros((1 << (len(pixels) - 1).bit_length(), *pixels[0].shape), np.uint8)
        batch[: len(pixels)] = pixels
        yield from zip(paths, np.asarray(classify(batch)), strict=False)


def best(
    probabilities: np.ndarray, classes: Sequence[str], titles: dict[str, str], top: int
) -> list[dict[str, Any]]:
    """The most probable classes, best first; raises UserError if a probability is NaN."""
    if not np.isfinite(probabilities).all():
        raise UserError("the network's outputs are not finite; its training may have diverged")
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
    """A table with a section for each image, and a column for English names if there are any."""
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
    """The paths, with a progress bar on stderr if they are many and it disturbs no output."""
    shown = len(paths) > BATCH and not (streams and sys.stdout.isatty())
    console = rich.console.Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    return rich.progress.track(paths, "images", console=console, disable=hidden, transient=True)


def open_network(args: argparse.Namespace) -> tuple[Any, Sequence[str], Callable]:
    """Returns the preprocessing, the classes, and a function from uint8 images to probabilities."""
    import jax

    from effnet_jax import export, models, weights
    from effnet_jax.data.preprocess import Preprocess, normalize

    own = args.model, args.origin, args.classes
    if pathlib.Path(args.weights).suffix in export.FORMATS:
        if own != (None, None, None):
            raise UserError(
                f"{args.weights} contains its model and classes: leave out --model, --origin and "
                "--classes"
            )
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
    tracked = track(paths, streams=args.json or args.print_csv)
    classified = classify_all(readable(tracked, preprocess.pixels, bad), classify)
    results = ((path, best(p, classes, titles(), args.top)) for path, p in classified)
    if args.json:
        for path, rows in results:
            print(json.dumps({"image": path, "predictions": rows}), flush=True)
    elif args.print_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for path, rows in results:
            writer.writerows({"image": path, **row} for row in rows)
            sys.stdout.flush()
    elif (shown := table(results)).rows:
        show(shown)
    if bad:
        raise ImagesFailed(f"{len(bad)} of {len(paths)} images could not be read")
