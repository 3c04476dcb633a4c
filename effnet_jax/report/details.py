"""Details of an evaluation: accuracy by class, confusion matrix, a page of the worst mistakes."""

import base64
import pathlib
import warnings
from collections.abc import Sequence

import cv2
import jinja2
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from effnet_jax import csv_rows
from effnet_jax.data import pipeline
from effnet_jax.data.decode import decode_image
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError
from effnet_jax.imagenet.dataset import titles
from effnet_jax.metrics import Outcomes, class_counts, mean_per_class
from effnet_jax.report import drawing
from effnet_jax.run import files

FILES = ("per_class.csv", "confusion.csv", "confusion.png", "mistakes.html")
MOST = 100  # The most classes that are drawn as a matrix.
LISTED = 50  # With more classes, bars are drawn for this many of the least accurate.
NUMBERED = 25  # The most classes for which the cells of the matrix have room for numbers.
SIDE = 192  # Pixels of the longer side of an image on the page of mistakes.
TEMPLATE = pathlib.Path(__file__).with_name("mistakes.html")


def check(folder: pathlib.Path) -> None:
    """Raise UserError if `write` can't write to the folder or would replace a file."""
    if existing := [name for name in FILES if (folder / name).exists()]:
        raise UserError(f"{folder / existing[0]} already exists; choose another --details")
    files.make_folder("--details", folder)


def write(
    folder: pathlib.Path,
    title: str,
    classes: Sequence[str],
    outcomes: Outcomes,
    source: Source,
    exif: str = "ignore",
) -> None:
    """Write FILES into a folder, which is created; confusion.csv only if confusions are counted.

    `classes` are the network's, `source` has the evaluated records, and `exif` is
    `config.data.exif`. If the class of a record has changed since the evaluation, its mistake is
    shown without the image. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = titles()
    names = [known.get(name, name) for name in classes]
    counts = np.asarray(outcomes.counts)
    (folder / FILES[0]).write_bytes(csv_rows.encode(by_class(classes, counts)))
    if len(counts) == len(counts.T):
        rows = ([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
        matrix = csv_rows.encode([["true \\ predicted", *classes], *rows])
        (folder / FILES[1]).write_bytes(matrix)
    images, right = class_counts(counts)
    title += f"\ntop-1 {right.sum() / images.sum():.1%}"
    title += f", mean per class {mean_per_class(counts):.1%}, {images.sum():,} images"
    with warnings.catch_warnings():  # The font may lack characters of class names.
        warnings.simplefilter("ignore", UserWarning)
        draw(names, counts, title).savefig(folder / FILES[2], dpi=100, bbox_inches="tight")
    every = list(zip(*(each.tolist() for each in outcomes[1:]), strict=True))
    mistakes = [
        {
            "probability": probability,
            "file": source.describe(record),
            "image": picture(source, record, classes[label], exif),
            "label": names[label],
            "predicted": names[predicted],
        }
        for probability, record, label, predicted in every
        if probability >= 0
    ]
    template = jinja2.Template(TEMPLATE.read_text(), autoescape=True, trim_blocks=True)
    wrong = int(images.sum() - right.sum())
    page = template.render(title=title, mistakes=mistakes, wrong=wrong)
    (folder / FILES[3]).write_text(page, encoding="utf-8")


def by_class(classes: Sequence[str], counts: np.ndarray) -> list[list]:
    """The rows of per_class.csv with their header; `counts` are those of `Outcomes`."""
    rows = [["class", "count", "correct", "accuracy", "most_confused_with", "times"]]
    numbers = (each.tolist() for each in class_counts(counts))
    for name, images, right, other in zip(classes, *numbers, confused(counts), strict=True):
        accuracy = f"{right / images:.6f}" if images else ""
        taken_for = (classes[other[0]], other[1]) if other else ("", "")
        rows.append([name, images, right, accuracy, *taken_for])
    return rows


def confused(counts: np.ndarray) -> list[tuple[int, int] | None]:
    """For each class, its most frequent wrong prediction and the count; None if not known."""
    if len(counts) != len(counts.T):
        return [None] * len(counts)
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    pairs = zip(wrong.argmax(1).tolist(), wrong.max(1).tolist(), strict=True)
    return [pair if pair[1] else None for pair in pairs]


def draw(names: Sequence[str], counts: np.ndarray, title: str) -> matplotlib.figure.Figure:
    """The confusion matrix of the classes that occur; if over MOST, bars of the least accurate."""
    seen = np.flatnonzero(counts.any(1))
    if len(counts) == len(counts.T):
        seen = np.flatnonzero(counts.any(1) | counts.any(0))
    shown = [_shorten(name) for name in names]
    if len(seen) > MOST or len(counts) != len(counts.T):
        return _draw_least(shown, counts, title)
    count = len(seen)
    cell = min(1.3, max(0.2, 9 / count))  # Inches.
    size = cell * count + 3.2
    figure = matplotlib.figure.Figure((max(size, 6.5), max(size - 0.8, 4)), layout="constrained")
    _draw_matrix(figure.subplots(), [shown[i] for i in seen], counts[np.ix_(seen, seen)], cell)
    figure.suptitle(title, fontsize=drawing.TEXT, parse_math=False)
    return figure


def _draw_matrix(axes: Axes, names: Sequence[str], counts: np.ndarray, cell: float) -> None:
    """Draw a matrix with a row for each true class, coloured by share; cells are `cell` inches."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # Makes rare ones visible.
    size = min(drawing.SMALL, 52 * cell)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted", fontsize=drawing.TEXT)
    axes.set_ylabel("true", fontsize=drawing.TEXT)
    for place in np.argwhere(counts) if len(names) <= NUMBERED else ():
        colour = "white" if share[*place] > 0.3 else "black"
        form = {"ha": "center", "va": "center", "color": colour, "fontsize": size}
        axes.text(*place[::-1], f"{counts[*place]:,}", **form)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    bar.ax.tick_params(labelsize=drawing.SMALL)


def _draw_least(names: Sequence[str], counts: np.ndarray, title: str) -> matplotlib.figure.Figure:
    """Bars of the least accurate classes, each with the class it is most often confused with."""
    images, right = class_counts(counts)
    accuracy = np.where(images > 0, right / np.maximum(images, 1), np.inf)
    least = [i for i in np.argsort(accuracy, kind="stable")[:LISTED].tolist() if images[i]]
    figure = matplotlib.figure.Figure((10, 1.6 + 0.22 * len(least)), layout="constrained")
    figure.suptitle(title, fontsize=drawing.TEXT, parse_math=False)
    axes, others = figure.subplots(), confused(counts)
    axes.barh(range(len(least)), 100 * accuracy[least], color=drawing.style("width")[0])
    axes.set_yticks(range(len(least)), [names[i] for i in least], fontsize=drawing.SMALL)
    axes.set(xlim=(0, 100), ylim=(len(least) - 0.4, -0.6))
    axes.set_xlabel("top-1 (%)", fontsize=drawing.TEXT)
    of = f"{(images > 0).sum():,} classes with images"
    axes.set_title(f"the {len(least)} least accurate of {of}", fontsize=drawing.SMALL)
    for place, i in enumerate(least):
        other = (
            f"; most often taken for {names[others[i][0]]} ({others[i][1]:,})" if others[i] else ""
        )
        text, at = f"{right[i]:,} of {images[i]:,}{other}", 100 * accuracy[i]
        side = {"ha": "left", "color": "black"} if at < 50 else {"ha": "right", "color": "white"}
        form = {"va": "center", "fontsize": drawing.SMALL - 1.5, **side}
        form |= {"xytext": (4 if at < 50 else -4, 0), "textcoords": "offset points"}
        axes.annotate(text, (at, place), **form)
    return figure


def picture(source: Source, index: int, label: str, exif: str) -> str:
    """A record's image as a small JPEG in base64, or "" if its class is no longer `label`."""
    record = pipeline.read(source, index)
    if source.classes[record["label"]] != label:
        return ""
    image = decode_image(record["image"], exif)
    scale = SIDE / max(image.shape[:2])
    size = [max(1, round(scale * length)) for length in image.shape[1::-1]]
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST  # Enlarged pixels stay sharp.
    image = cv2.resize(image, size, interpolation=way)
    data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 85))[1]
    return base64.b64encode(data.tobytes()).decode()


def _shorten(name: str, most: int = 24) -> str:
    """A name cut to `most` characters, with dollar signs escaped so that none begins a formula."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
