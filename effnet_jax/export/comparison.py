"""Images to calibrate an exported file with, and to compare it with its network on."""

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

BATCH = 16  # Images at a time.


def open_images(data: str, training: bool) -> Source:
    """The images that a flag names; the class of one is its folder's name, if it is in no run.

    Args:
      data: an image, a folder, whose images are taken at any depth, or a pattern; or the workdir of
        a run, for the images of its config.
      training: whether those to train on are taken from a run, or those to evaluate on.

    Raises UserError where there are none.
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
    """At most `most` indices, evenly spaced; some twice, to have a multiple of `multiple`."""
    count = min(most, len(source))
    indices = np.linspace(0, len(source) - 1, count, dtype=int)
    return np.resize(indices, -(-count // multiple) * multiple)


def read_batches(
    source: Source, preprocess: dict[str, Any], indices: Sequence[int], size: int = BATCH
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Batches of uint8 images [N, resolution, resolution, 3], and the names of their classes."""
    made = Preprocess(**preprocess)
    for start in range(0, len(indices), size):
        pixels, names = [], []
        for index in map(int, indices[start : start + size]):
            with pipeline.error_for(source, index):
                record = source[index]
                pixels.append(made.pixels(record["image"]))
            names.append(source.classes[record["label"]])
        yield np.stack(pixels), names


def compare(exported: Exported, weights: Weights, source: Source) -> dict[str, float | int]:
    """How well a file agrees with its network, in float32, on all images of a source.

    Returns:
      images, how many; same_top1, the fraction for which both choose one class; difference, the
      largest of outputs relative to the largest output. If folders have the names of classes also
      labelled, how many images have one; and top1 of the network and exported_top1 on these.
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
    labels, expected, found = np.array(choices).T
    result = {
        "images": len(labels),
        "same_top1": float(np.mean(expected == found)),
        "difference": difference / largest,
    }
    if count := int((labels >= 0).sum()):
        top1 = [float(((each == labels).sum()) / count) for each in (expected, found)]
        result |= {"labelled": count, "top1": top1[0], "exported_top1": top1[1]}
    return result
