"""Batches as a pure function of the step.

Position p of the endless stream of records is record `permutation(seed, epoch)[p mod n]` of epoch
`p // n`: each record once an epoch, in a new order every epoch. The global batch at step t holds
the positions [t * B, (t + 1) * B), and host h of H its h-th part, so the same images with the same
augmentations come in the same order whatever the number of hosts. There is no iterator state: a
run that starts at step t asks for the batches from t on.
"""

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from effnet_jax.data import crop
from effnet_jax.data.decode import decode_image
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError, check_choice

Batch = dict[str, np.ndarray]


def _decode(source: Source, index: int) -> tuple[np.ndarray, int | np.ndarray]:
    try:
        record = source[index]
        return decode_image(record["image"]), record["label"]
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {source.describe(index)}: {error}") from None


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values of `config.preprocess` that no image could be made with."""
    check_choice("config.preprocess.interpolation", config.interpolation, crop.INTERPOLATIONS)
    for key in ("crop_area", "crop_aspect"):
        try:
            low, high = map(float, config[key])
        except (TypeError, ValueError):
            raise UserError(
                f"config.preprocess.{key} must be two numbers, as in '(0.1, 1.0)'; "
                f"got {config[key]}"
            ) from None
        if not 0 < low <= high or (key == "crop_area" and high > 1):
            raise UserError(
                f"config.preprocess.{key} must be a range above 0; got {(low, high)}"
                + (" (at most 1)" if key == "crop_area" else "")
            )
    for key in ("mean", "std"):
        if len(config[key]) != 3 or (key == "std" and min(config[key]) <= 0):
            raise UserError(
                f"config.preprocess.{key} must be three numbers, for red, green and blue"
                + (", above 0" if key == "std" else "")
                + f"; got {config[key]}"
            )


def check_images(source: Source, count: int, threads: int) -> None:
    """Decodes `count` images, spread evenly; raises a UserError that names a bad one."""
    indices = np.unique(np.linspace(0, len(source) - 1, min(count, len(source)), dtype=int))
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(lambda index: _decode(source, int(index)), indices):
            pass


def train_dataset(
    source: Source,
    config: ConfigDict,
    resolution: int,
    batch_size: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
) -> grain.MapDataset:
    """This host's part of the batch at every step: `dataset[step]`, without end.

    Args:
      source: the records.
      config: `config.preprocess`.
      resolution: side of the images, in pixels.
      batch_size: global batch; a multiple of `hosts`.
      seed: of the order and of the augmentations.
      host, hosts: this host's number, and how many there are.

    Returns:
      A dataset of batches: image uint8 [B / hosts, resolution, resolution, 3], label int32 and
      mask float32 [B / hosts].
    """

    def load(index: int, rng: np.random.Generator) -> dict[str, Any]:
        image, label = _decode(source, index)
        height, width = image.shape[:2]
        box = crop.random_box(height, width, config.crop_area, config.crop_aspect, rng)
        if box is None:
            box = crop.central_box(height, width, resolution, config.crop_padding)
        image = crop.resize(crop.crop(image, box), resolution, config.interpolation)
        if config.flip and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        return {"image": image, "label": np.int32(label), "mask": np.float32(1)}

    stream = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
    # The random map stands before the split by host, so that its numbers follow the position.
    images = stream.random_map(load, seed=seed + 1)
    return images.batch(batch_size // hosts)[host::hosts]


def eval_dataset(
    source: Source,
    config: ConfigDict,
    resolution: int,
    batch_size: int,
    host: int = 0,
    hosts: int = 1,
) -> grain.MapDataset:
    """This host's part of every evaluation batch, each record once, in order.

    The last batch is filled up with black images whose mask is 0, so that every host runs the same
    number of steps and every record counts. Arguments and batches as for `train_dataset`, but where
    the source has sets of labels, label is int32 [B / hosts, MOST_LABELS].
    """

    def load(index: int) -> dict[str, Any]:
        if index >= len(source):
            image = np.zeros((resolution, resolution, 3), np.uint8)
            label = source[0]["label"]  # For its shape.
        else:
            image, label = _decode(source, index)
            box = crop.central_box(*image.shape[:2], resolution, config.crop_padding)
            image = crop.resize(crop.crop(image, box), resolution, config.interpolation)
        mask = np.float32(index < len(source))
        return {"image": image, "label": np.int32(label), "mask": mask}

    padded = -(-len(source) // batch_size) * batch_size
    images = grain.MapDataset.range(padded).map(load)
    return images.batch(batch_size // hosts)[host::hosts]


def read_ahead(
    dataset: grain.MapDataset, config: ConfigDict, start: int = 0, stop: int | None = None
) -> Iterator[Batch]:
    """Iterates `dataset[start:stop]` in order, read ahead by threads.

    One thread makes one batch, so no more than `prefetch_batches` threads are ever busy, and no
    more than so many batches are in memory.

    Args:
      dataset: of batches.
      config: `config.data`.
      start, stop: positions; None for the end.
    """
    options = grain.ReadOptions(
        num_threads=config.threads,
        prefetch_buffer_size=config.prefetch_batches,
    )
    return iter(dataset[start:stop].to_iter_dataset(options))
