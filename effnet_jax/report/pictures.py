"""Pages of pictures that show what training makes of images."""

from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import models
from effnet_jax.data import pipeline, sources
from effnet_jax.report import drawing

CELL = 1.1  # Inches: a picture's place on the page.


class Few:
    """Some records of a source, spread evenly; their labels are their positions among them."""

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


def versions(source: sources.Source, config: ConfigDict, epochs: int) -> list[np.ndarray]:
    """What training gets of every record in the first epochs: uint8 [n, r, r, 3] for each epoch.

    Args:
      source: whose labels are the records' positions.
      config: of an experiment.
      epochs: how many.
    """
    resolution = models.coefficients(config.model).resolution
    # One batch is one epoch, in an order of its own, which the labels undo.
    config = config.copy_and_resolve_references()
    config.batch_size = len(source)
    every = pipeline.train_batches(source, config, resolution)
    batches = [every[epoch] for epoch in range(epochs)]
    return [batch["image"][np.argsort(batch["label"])] for batch in batches]


def draw(
    originals: Sequence[np.ndarray],
    epochs: Sequence[np.ndarray],
    names: Sequence[str],
    heading: str,
) -> matplotlib.figure.Figure:
    """The page: a row for each record, the original before its versions.

    Args:
      originals: uint8 [h, w, 3] each, of any size.
      epochs: uint8 [n, r, r, 3] for each epoch.
      names: of the records.
      heading: of the page.
    """
    columns = [list(originals), *epochs]
    size = (CELL * len(columns), CELL * (len(originals) + 0.5))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure.suptitle(heading, fontsize=drawing.TEXT)
    grid = figure.subplots(len(originals), len(columns), squeeze=False)
    for row, axes_of_row in enumerate(grid):
        for column, axes in enumerate(axes_of_row):
            axes.imshow(columns[column][row])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        axes_of_row[0].set_ylabel(names[row][:16], fontsize=drawing.SMALL)
    for column, axes in enumerate(grid[0]):
        axes.set_title(f"epoch {column}" if column else "original", fontsize=drawing.SMALL)
    return figure


def title(name: str, config: ConfigDict) -> str:
    """A page's title: the recipe and what it augments with on the host."""
    augment = config.augment
    parts = [augment.policy if augment.policy != "none" else "no policy"]
    if augment.policy == "randaugment":
        layers, magnitude = augment.randaugment_layers, augment.randaugment_magnitude
        parts[0] += f", {layers} layers of magnitude {magnitude:g}"
    if augment.erase_probability:
        parts.append(f"erasing {augment.erase_probability:.0%}")
    return f"{name}: {'; '.join(parts)}"
