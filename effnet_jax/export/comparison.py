"""Images for calibrating an exported file and for comparing it with its network."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.data import folders, pipeline, sources
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.data.sources import Source
from effnet_jax.export import Exported
from effnet_jax.weights import Weights, ours

BATCH = 16  # Images.


def open_images(data: str, training: bool) -> Source:
    """Opens the images that a flag names.

    The class of an image is the name of its folder, except in the data of a run.

    Args:
      data: an image, a folder whose images are taken at any depth, or a pattern; or the workdir of
        a run, which stands for the images of its config.
      training: take the training images of a run, instead of those it is evaluated on.

    Raises UserError if there is no image.
    """
    path = pathlib.Path(data).expanduser()
    if ours.is_run(path):
        config = config_lib.load(path).data
        return sources.open_source(config, config.train_split if training else config.eval_split)
    paths = folders.list_images([data])
    names = [pathlib.Path(each).absolute().parent.name for each in paths]
    classes = tuple(sorted(set(names)))
    return folders.FolderSource(
        classes, list(zip(paths, map(classes.index, names), strict=True)), path
    )


def choose(source: Source, most: int, multiple: int = 1) -> np.ndarray:
    """Returns at most `most` evenly spaced indices, some repeated for a multiple of `multiple`."""
    count = min(most, len(source))
    indices = np.linspace(0, len(source) - 1, count, dtype=int)
    return np.resize(indices, -(-count // multiple) * multiple)


def read_batches(
    source: Source, preprocess: dict[str, Any], indices: Sequence[int], size: int = BATCH
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yields batches of uint8 images [N, resolution, resolution, 3], and names of their classes."""
    to_pixels = Preprocess(**preprocess).pixels
    for start in range(0, len(indices), size):
        pixels, names = [], []
        for index in map(int, indices[start : start + size]):
            with pipeline.error_for(source, index):
                record = source[index]
                pixels.append(to_pixels(record["image"]))
            names.append(source.classes[record["label"]])
        yield np.stack(pixels), names


def compare(exported: Exported, weights: Weights, source: Source) -> dict[str, float | int]:
    """Compares a file with its network, in float32, on all images of a source.

    Returns:
      "images", the number of images; "same_top1", the fraction for which both choose the same
      class; "difference", the largest difference of outputs relative to the largest output. If some
      images have a class of the network, also "labelled", their number, and the accuracy on them:
      "top1" of the network and "exported_top1" of the file.
    """
    config = weights.config.copy_and_resolve_references()
    with config.unlocked():
        config.dtype = "float32"
    model, side = models.build(config), weights.preprocess["resolution"]
    variables = jax.device_put(weights.variables)
    run = jax.jit(lambda images: model.apply(variables, images, train=False)[0])
    images = (BATCH, side, side, 3), np.dtype(np.float32)
    network = Exported(exported.preprocess, weights.classes, False, images, run)
    outputs = network.probabilities if exported.softmax else network.outputs
    numbers = {name: number for number, name in enumerate(weights.classes)}
    difference, largest, choices = 0.0, 0.0, []
    for pixels, names in read_batches(source, weights.preprocess, range(len(source))):
        expected, found = outputs(pixels), exported.outputs(pixels)
        difference = max(difference, float(np.abs(expected - found).max()))
        largest = max(largest, float(np.abs(expected).max()))
        labels = [numbers.get(name, -1) for name in names]
        choices += zip(labels, expected.argmax(-1), found.argmax(-1), strict=True)
    labels, *chosen = np.array(choices).T
    result = {
        "images": len(labels),
        "same_top1": float(np.mean(np.equal(*chosen))),
        "difference": difference / largest,
    }
    if count := int((labels >= 0).sum()):
        top1 = [float(((each == labels).sum()) / count) for each in chosen]
        result |= {"labelled": count, "top1": top1[0], "exported_top1": top1[1]}
    return result
