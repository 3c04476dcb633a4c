"""Maps drawn over the images that they explain."""

from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from effnet_jax.data import crop
from effnet_jax.data.decode import decode_image
from effnet_jax.data.preprocess import Preprocess

DPI = 110
TEXT = 9


def draw(
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None, str]]], width: float = 2.0
) -> matplotlib.figure.Figure:
    """A figure with a grid of cells, each `width` inches: an image, the map over it, and a title.

    An image is uint8 [H, W, 3]; its map [h, w] covers it whole, whatever its proportions, or is
    None. What is negative in a map is not drawn, and the rest is relative to the map's largest.
    """
    tallest = [max(image.shape[0] / image.shape[1] for image, *_ in row) for row in rows]
    lines = max(title.count("\n") + 1 for row in rows for *_, title in row)
    size = width * max(map(len, rows)), sum(width * each + 0.2 + 0.15 * lines for each in tallest)
    figure = matplotlib.figure.Figure(size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), max(map(len, rows)), squeeze=False, height_ratios=tallest)
    for axes in grid.flat:
        axes.axis("off")
    for row, cells in enumerate(rows):
        for axes, (image, found, title) in zip(grid[row], cells, strict=False):
            axes.set_title(title, fontsize=TEXT, parse_math=False)
            axes.imshow(image)
            if found is not None:
                height, width = image.shape[:2]
                shown = np.maximum(found, 0) / max(found.max(), np.finfo(np.float32).tiny)
                options = {"extent": (0, width, height, 0), "interpolation": "bilinear"}
                axes.imshow(shown, cmap="turbo", vmin=0, vmax=1, alpha=0.5, **options)
                axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def see(preprocess: Preprocess, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """What a network gets of an image, uint8 [r, r, 3], and the same part of it as it is."""
    image = decode_image(data, "apply")
    return preprocess.pixels(data), crop.crop(image, preprocess.box(*image.shape[:2]))
