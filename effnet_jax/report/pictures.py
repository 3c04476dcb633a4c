"""Pages of images before and after augmentation."""

from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import models
from effnet_jax.data import pipeline, sources
from effnet_jax.report import drawing

CELL = 1.1  # Width and height of the space for one image, in inches.


class Few:
    """A source of at most `count` evenly spaced records of another, labelled from 0 by position."""

    def __init__(self, source: sources.Source, count: int):
        self._source = source
        self._indices = np.linspace(0, len(source) - 1, min(count, len(source)), dtype=int)
        self.classes = tuple(source.classes[source[int(i)]["label"]] for i in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        return {"image": self._source[int(self._indices[index])]["image"], "label": index}

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))


def versions(source: Few, config: ConfigDict, epochs: int) -> list[np.ndarray]:
    """The images of the first epochs as they enter training: uint8 [n, r, r, 3] for each epoch."""
    # A batch is a whole epoch in shuffled order; sorting by label restores the order of `source`.
    config = config.copy_and_resolve_references()
    config.batch_size = len(source)
    resolution = models.coefficients(config.model).resolution
    every = pipeline.train_batches(source, config, resolution)
    batches = (every[epoch] for epoch in range(epochs))
    return [batch["image"][np.argsort(batch["label"])] for batch in batches]


def draw(
    originals: Sequence[np.ndarray], epochs: Sequence[np.ndarray], names: Sequence[str], title: str
) -> matplotlib.figure.Figure:
    """A figure with a row for each record: the original, uint8 [h, w, 3], then its `versions`."""
    columns = [list(originals), *epochs]
    size = CELL * len(columns), CELL * (len(originals) + 0.5)
    figure = matplotlib.figure.Figure(size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure.suptitle(title, fontsize=drawing.TEXT, parse_math=False)
    grid = figure.subplots(len(originals), len(columns), squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        axes.imshow(columns[column][row])
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if not column:
            axes.set_ylabel(names[row][:16], fontsize=drawing.SMALL, parse_math=False)
        if not row:
            axes.set_title(f"epoch {column}" if column else "original", fontsize=drawing.SMALL)
    return figure


def title(name: str, config: ConfigDict) -> str:
    """The title of a page: `name` and the augmentations that run on the host."""
    augment = config.augment
    text = f"{name}: {augment.policy if augment.policy != 'none' else 'no policy'}"
    if augment.policy == "randaugment":
        layers, magnitude = augment.randaugment_layers, augment.randaugment_magnitude
        text += f", {layers} layers of magnitude {magnitude:g}"
    return text + (f"; erasing {rate:.0%}" if (rate := augment.erase_probability) else "")
