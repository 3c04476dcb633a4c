"""Pictures of maps over the images that they explain."""

from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from effnet_jax.data import crop
from effnet_jax.data.decode import decode_image
from effnet_jax.data.preprocess import Preprocess

DPI = 110
TEXT = 9
TALLEST = 3  # Maximum height of a cell over its width. Taller images are drawn narrower.


def draw(
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None, str]]], width: float = 2.0
) -> matplotlib.figure.Figure:
    """Draws a grid of cells, each an image, the map over the image, and a title.

    An image is uint8 [H, W, 3]. Its map [h, w] covers the whole image whatever h and w are, or is
    None. Each map is drawn relative to its largest value; negative values are drawn as 0. Cells are
    `width` inches wide.
    """
    columns = max(map(len, rows))
    heights = [min(max(x.shape[0] / x.shape[1] for x, *_ in row), TALLEST) for row in rows]
    lines = max(title.count("\n") + 1 for row in rows for *_, title in row)
    size = width * columns, sum(width * each + 0.2 + 0.15 * lines for each in heights)
    figure = matplotlib.figure.Figure(size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.axis("off")
    for row, cells in zip(grid, rows, strict=True):
        for axes, (image, values, title) in zip(row, cells, strict=False):
            axes.set_title(title, fontsize=TEXT, parse_math=False)
            # By default the first pixel's centre is at 0; a map of other cells needs the edges.
            extent = (0, image.shape[1], image.shape[0], 0)
            axes.imshow(image, extent=extent)
            if values is not None:
                shown = np.maximum(values, 0) / max(values.max(), np.finfo(np.float32).tiny)
                options = {"cmap": "turbo", "alpha": 0.5, "interpolation": "bilinear"}
                axes.imshow(shown, vmin=0, vmax=1, extent=extent, **options)
    return figure


def see(preprocess: Preprocess, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels that a network takes, uint8 [r, r, 3], and that crop of the image."""
    image = decode_image(data, "apply")
    return preprocess.pixels(data), crop.crop(image, preprocess.box(*image.shape[:2]))
