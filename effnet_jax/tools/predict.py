"""What is in images: the most probable classes of each, by weights of ours or of others.

As in: python -m effnet_jax.tools.predict cat.jpg dog.png --weights=lite0.safetensors

--weights is a file of weights, a workdir of a run, or hf://ORG/NAME. Crop, resizing, normalisation
and classes are the weights' own; what a file of others doesn't say is told as in tools.convert, by
--model, --origin and --classes. --top=N classes are shown of each image; --json prints an object a
line and image: image, and predictions, each with label, class, name and probability. An image that
can't be read is named on stderr, the others go on, and the exit code is 1.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from effnet_jax import cli
from effnet_jax.errors import ImagesFailed, UserError

BATCH = 16  # Images at a time, at most.
Classify = Callable[[np.ndarray], np.ndarray]  # Pixels [N, size, size, 3] to probabilities.


def readable(paths: Sequence[str], pixels: Callable[[bytes], np.ndarray], bad: list[str]):
    """Pairs of a path and its pixels; those that can't be read are told, and added to `bad`."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                yield path, pixels(file.read())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"can't read {path}: {reason}", file=sys.stderr)
            bad.append(path)


def classify_all(
    images: Iterator[tuple[str, np.ndarray]], classify: Classify
) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs of a path and its probabilities, in batches of 1, 2, 4, 8 or 16: few are compiled."""
    while chunk := list(itertools.islice(images, BATCH)):
        paths, pixels = zip(*chunk, strict=True)
        size = 1 << (len(pixels) - 1).bit_length()
        batch = np.zeros((size, *pixels[0].shape), np.uint8)
        batch[: len(pixels)] = pixels
        yield from zip(paths, classify(batch), strict=False)


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


def load(
    source: str, **described: str | None
) -> tuple[Classify, Callable[[bytes], np.ndarray], tuple[str, ...]]:
    """How weights classify pixels, how they want images, and their classes."""
    import jax

    from effnet_jax import models, weights
    from effnet_jax.data.preprocess import Preprocess, normalize

    loaded = weights.load(source, **described)
    model = models.build(loaded.config)
    preprocess = Preprocess(**loaded.preprocess)

    @jax.jit
    def probabilities(variables, images):
        images = normalize(images, preprocess.mean, preprocess.std)
        return jax.nn.softmax(model.apply(variables, images, train=False)[0])

    variables = jax.device_put(loaded.variables)
    return (
        lambda images: np.asarray(probabilities(variables, images)),
        preprocess.pixels,
        loaded.classes,
    )


def show(results: Iterator[tuple[str, list[dict[str, Any]]]]) -> None:
    """A table with a section for each image."""
    import rich.console
    import rich.markup
    import rich.table

    table = rich.table.Table("image", "probability", "class", "")
    for path, rows in results:
        for number, row in enumerate(rows):
            name = "" if row["name"] == row["class"] else row["class"]
            cells = ("" if number else path, f"{row['probability']:.1%}", row["name"], name)
            table.add_row(*map(rich.markup.escape, cells), end_section=row is rows[-1])
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 120  # A pipe or a file has no width; the default of 80 would cut names.
    if table.rows:
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.tools.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--weights", required=True, metavar="FILE|WORKDIR")
    for name in ("model", "origin", "classes"):
        parser.add_argument(f"--{name}", help="of weights that don't say; see tools.convert")
    parser.add_argument("--top", type=int, default=5, help="classes of each image")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each image")
    args = parser.parse_args()
    if args.top < 1:
        raise UserError(f"--top must be 1 or more; got {args.top}")

    from effnet_jax.imagenet import dataset as imagenet

    classify, pixels, classes = load(
        args.weights, model=args.model, origin=args.origin, classes=args.classes
    )
    bad: list[str] = []
    found = classify_all(readable(args.images, pixels, bad), classify)
    results = ((path, best(p, classes, imagenet.titles(), args.top)) for path, p in found)
    if args.json:
        for path, rows in results:
            print(json.dumps({"image": path, "predictions": rows}), flush=True)
    else:
        show(results)
    if bad:
        raise ImagesFailed(f"{len(bad)} of {len(args.images)} images could not be read")


if __name__ == "__main__":
    cli.run(main)
