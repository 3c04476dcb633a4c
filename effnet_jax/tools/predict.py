"""The most probable classes of images, by weights of ours or of others.

As in: effnet-jax predict cat.jpg dog.png --weights=lite0.safetensors

--weights is a file of weights, the workdir of a run, or hf://ORG/NAME. Crop, resizing,
normalisation and classes are the weights' own; --model, --origin and --classes state what a file
doesn't, as for convert. --top=N sets how many classes are shown; --json prints an object for
each image: image, and predictions, each with label, class, name and probability. An image that
can't be read is reported on stderr, the others are classified, and the exit code is 1.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.table

from effnet_jax import flags
from effnet_jax.errors import ImagesFailed
from effnet_jax.tools import show

BATCH = 16  # Most images in a batch.
PARSER = flags.Parser(__doc__)
PARSER.add_argument("images", nargs="+", metavar="IMAGE")
PARSER.add_argument("--weights", required=True, metavar="FILE|WORKDIR")
for name in ("model", "origin", "classes"):
    PARSER.add_argument(f"--{name}", help="of weights that don't state it; see convert")
PARSER.add_argument("--top", type=flags.count, default=5, help="classes of each image")
PARSER.add_argument("--json", action="store_true", help="a line of JSON for each image")


def readable(paths: Sequence[str], pixels: Callable[[bytes], np.ndarray], bad: list[str]):
    """Pairs of a path and its pixels; reports paths that can't be read and adds them to `bad`."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                yield path, pixels(file.read())
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
    """The most probable classes, best first."""
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
    """A section for each image."""
    shown = rich.table.Table("image", "probability", "class", "")
    for path, rows in results:
        for number, row in enumerate(rows):
            name = "" if row["name"] == row["class"] else row["class"]
            cells = ("" if number else path, f"{row['probability']:.1%}", row["name"], name)
            shown.add_row(*cells, end_section=row is rows[-1])
    return shown


def main(args: argparse.Namespace) -> None:
    import jax

    from effnet_jax import models, weights
    from effnet_jax.data.preprocess import Preprocess, normalize
    from effnet_jax.imagenet.dataset import titles

    found = weights.load(args.weights, args.model, args.origin, args.classes)
    model, preprocess = models.build(found.config), Preprocess(**found.preprocess)

    @jax.jit
    def classify(variables, images):
        images = normalize(images, preprocess.mean, preprocess.std)
        return jax.nn.softmax(model.apply(variables, images, train=False)[0])

    classify, bad = functools.partial(classify, jax.device_put(found.variables)), []
    classified = classify_all(readable(args.images, preprocess.pixels, bad), classify)
    results = ((path, best(p, found.classes, titles(), args.top)) for path, p in classified)
    if args.json:
        for path, rows in results:
            print(json.dumps({"image": path, "predictions": rows}), flush=True)
    elif (shown := table(results)).rows:
        show(shown)
    if bad:
        raise ImagesFailed(f"{len(bad)} of {len(args.images)} images could not be read")
