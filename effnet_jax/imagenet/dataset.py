"""ImageNet (ILSVRC 2012) as a data set: its classes, counts and archives, and how it is ordered.

Nobody published which images the reference's `minival` holds, the 25,022 that it took from training
to choose checkpoints by. What is known is the rule: the first 20 of the 1024 files that the
Inception script build_imagenet_data.py makes (github.com/tensorflow/models, research/inception).
This module has that script's order and its file boundaries. One thing the script leaves open is the
order in which it finds the files of a class, which it takes from the file system; here they are
sorted by name.
"""

import collections
import functools
import itertools
import pathlib
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from effnet_jax.errors import UserError

NAME, VERSION = "imagenet2012", "5.1.0"  # As TFDS calls the form that is written here.
TRAIN, VALIDATION, MINIVAL = "train", "validation", "minival"
IMAGES = {TRAIN: 1_281_167, VALIDATION: 50_000}
# Fewest and most images of a class: Russakovsky et al. 2015 (arXiv 1409.0575), table 2.
PER_CLASS = {TRAIN: (732, 1300), VALIDATION: (50, 50)}
CLASSES = 1000
SHARDS = {TRAIN: 1024, VALIDATION: 128}  # The script's; fewer where there are few images.
RUNS = 8  # The script's threads: each takes an equal part of the images, and of the files.
SEED = 12345  # The script's.


class Archive(NamedTuple):
    """One of the two tars that image-net.org gives out."""

    name: str
    size: int  # Bytes.
    md5: str


ARCHIVES = {
    TRAIN: Archive("ILSVRC2012_img_train.tar", 147897477120, "1d675b47d978889d74fa0da5fadfb00e"),
    VALIDATION: Archive("ILSVRC2012_img_val.tar", 6744924160, "29b22e2961454d5413ddabcf34fc5622"),
}


class Item(NamedTuple):
    """One image, and where its encoded bytes lie."""

    file_name: str
    label: int
    path: str
    offset: int  # In the file, in bytes; in an ArrayRecord file the number of the record.
    length: int  # Bytes.


@functools.cache
def titles() -> dict[str, str]:
    """What people call each class, by its WordNet id, in the order of the labels.

    The first of WordNet's words for it, out of google/automl efficientnetv2/g3doc/
    imagenet1k_labels.txt (6a54c87), with a word more where two classes share it. timm's
    imagenet_synset_to_lemma.txt has the same.
    """
    text = pathlib.Path(__file__).with_name("classes.tsv").read_text()
    return dict(line.split("\t") for line in text.splitlines())


@functools.cache
def class_names() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes by label, sorted."""
    return tuple(titles())


@functools.cache
def labels() -> dict[str, int]:
    """Label by WordNet id."""
    return {name: label for label, name in enumerate(class_names())}


@functools.cache
def _validation_classes() -> tuple[str, ...]:
    """Of the 50,000 images, by their number; TFDS's list."""
    import tensorflow_datasets as tfds

    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return tuple(path.read_text().split())


def label_of(wnid: str, where: str) -> int:
    """Label of a class by its WordNet id; a UserError that names `where` if there is no such class.

    >>> label_of("n01440764", "train/n01440764")
    0
    """
    if wnid not in labels():
        raise UserError(
            f"{where}: {wnid!r} is none of ImageNet's 1000 classes, which are named by WordNet ids "
            "such as n01440764"
        )
    return labels()[wnid]


def validation_label(file_name: str, where: str) -> int:
    """Label of a validation image by the number in its name; a UserError names `where`.

    TFDS counts the sorted names instead, which gives the same for all 50,000, and for a part of
    them would not.
    """
    match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", file_name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(_validation_classes()):
        raise UserError(
            f"{where}: {file_name!r} is no name of a validation image; "
            "they are ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG"
        )
    return labels()[_validation_classes()[number - 1]]


def shuffled(count: int, seed: int = SEED) -> list[int]:
    """0 to count - 1 in the order that Python 2's `random.seed(seed); random.shuffle` gives them.

    Python 3 draws the same numbers, and shuffles by them in another way.
    """
    draw = random.Random(seed).random
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        chosen = int(draw() * (last + 1))
        order[last], order[chosen] = order[chosen], order[last]
    return order


def ordered(split: str, items: Sequence[Item]) -> list[Item]:
    """The items in the order of their records: training shuffled, validation by name."""
    if split == VALIDATION:
        return sorted(items)
    items = sorted(items, key=lambda item: (item.label, item.file_name))
    return [items[position] for position in shuffled(len(items))]


def shard_bounds(split: str, images: int) -> list[int]:
    """Where each shard begins, and the end of the last.

    The script's boundaries for all of ImageNet; a smaller set has a shard for every 64 images, in
    steps of 8 shards, and at least 8.
    """
    per_run = min(max(images // (64 * RUNS), 1), SHARDS[split] // RUNS)
    runs = np.linspace(0, images, RUNS + 1).astype(int)
    bounds = [
        np.linspace(low, high, per_run + 1).astype(int)[:-1]
        for low, high in itertools.pairwise(runs)
    ]
    return [*np.concatenate(bounds).tolist(), images]


def minival_shards(shards: int) -> int:
    """How many of the training shards, from the first on, are `minival`: 20 of 1024."""
    return max(shards * 20 // 1024, 1)


def minival_images(images: int) -> int:
    """How many images `minival` holds.

    >>> minival_images(1_281_167)
    25022
    """
    bounds = shard_bounds(TRAIN, images)
    return bounds[minival_shards(len(bounds) - 1)]


def check(split: str, items: Sequence[Item]) -> None:
    """Raises UserError where a split is not all of ImageNet's."""
    counts = collections.Counter(item.label for item in items)
    low, high = PER_CLASS[split]
    wrong = []
    if len(items) != IMAGES[split]:
        wrong.append(f"{len(items):,} images, and ImageNet's has {IMAGES[split]:,}")
    if missing := [name for name, label in labels().items() if label not in counts]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        wrong.append(f"no images of {len(missing)} of 1000 classes ({shown})")
    odd = [label for label, count in sorted(counts.items()) if not low <= count <= high]
    if odd:
        expected = f"{low}" if low == high else f"{low} to {high}"
        wrong.append(
            f"{counts[odd[0]]} images of {class_names()[odd[0]]}, where {expected} are expected, "
            f"and {len(odd) - 1} other classes like it"
        )
    if wrong:
        raise UserError(
            f"{split} has {'; '.join(wrong)}. Complete the input, or add --subset if a part of "
            "ImageNet is meant"
        )


def check_names(split: str, items: Sequence[Item]) -> None:
    """Raises UserError where a split is empty, or two of its images have the same name."""
    if len(items) < RUNS:
        raise UserError(f"{split} has {len(items)} images; at least {RUNS} are needed")
    counts = collections.Counter(item.file_name for item in items)
    name, count = counts.most_common(1)[0]
    if count > 1:
        paths = sorted(item.path for item in items if item.file_name == name)
        raise UserError(f"{count} images of {split} are called {name}, in {', '.join(paths)}")
