"""ImageNet (ILSVRC 2012): its classes, counts, archives and the order of its records.

The reference chooses checkpoints by `minival`, 25,022 training images: 20 of the 1024 files that
the Inception script build_imagenet_data.py (github.com/tensorflow/models, research/inception) made.
Their names are in val_split20.txt, which efficientnet/README.md of github.com/tensorflow/tpu links;
`hold_out` takes such a list. Without one `minival` is the first 20 files in that script's order and
boundaries, except that the images of a class are sorted by name; the script takes them in the file
system's order.
"""

import collections
import functools
import itertools
import os
import pathlib
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from effnet_jax.data.imagenet_names import (
    VALIDATION_NAME,
    check_names,
    stated_class,
    train_name,
)
from effnet_jax.errors import UserError

NAME, VERSION = "imagenet2012", "5.1.0"  # In TFDS.
TRAIN, VALIDATION, MINIVAL = "train", "validation", "minival"
IMAGES = {TRAIN: 1_281_167, VALIDATION: 50_000}
# Fewest and most images of a class: Russakovsky et al. 2015 (arXiv 1409.0575), table 2.
PER_CLASS = {TRAIN: (732, 1300), VALIDATION: (50, 50)}
SHARDS = {TRAIN: 1024, VALIDATION: 128}  # The script's; fewer where there are few images.
CLASSES = 1000
RUNS = 8  # The script's threads: each takes an equal share of the images and of the files.


class Archive(NamedTuple):
    """One of the two tars from image-net.org."""

    name: str
    size: int  # Bytes.
    md5: str


ARCHIVES = {
    TRAIN: Archive("ILSVRC2012_img_train.tar", 147897477120, "1d675b47d978889d74fa0da5fadfb00e"),
    VALIDATION: Archive("ILSVRC2012_img_val.tar", 6744924160, "29b22e2961454d5413ddabcf34fc5622"),
}


class Item(NamedTuple):
    """One image and the place of its encoded bytes."""

    file_name: str
    label: int
    path: str
    offset: int  # Bytes from the start of the file; in an ArrayRecord file the record's number.
    length: int  # Bytes.


@functools.cache
def titles() -> dict[str, str]:
    """The English name of each class by WordNet id, in the order of the labels.

    The first of WordNet's words, from google/automl efficientnetv2/g3doc/imagenet1k_labels.txt
    (6a54c87), and one more where two classes share it. timm's imagenet_synset_to_lemma.txt agrees.
    """
    text = pathlib.Path(__file__).with_name("classes.tsv").read_text()
    return dict(line.split("\t") for line in text.splitlines())


@functools.cache
def class_names() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes by label, sorted."""
    return tuple(titles())


def features():
    """TFDS's features of imagenet2012."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(class_names())),
            "file_name": tfds.features.Text(),
        }
    )


def label_of(wnid: str, where: str) -> int:
    """Label of a class by its WordNet id; an error about another id names `where`."""
    if wnid not in titles():
        raise UserError(
            f"{where}: {wnid!r} is none of ImageNet's 1000 classes, WordNet ids such as n01440764"
        )
    return class_names().index(wnid)


def validation_label(file_name: str, where: str) -> int:
    """Label of a validation image by the number in its name; an error names `where`.

    TFDS counts the sorted names, which gives other labels for a subset of the images.
    """
    stated = VALIDATION_NAME.fullmatch(file_name) and stated_class(file_name)
    if stated is None:
        raise UserError(
            f"{where}: {file_name!r} is no name of a validation image; "
            "they are ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG"
        )
    return label_of(stated, where)


def shuffled(count: int) -> list[int]:
    """0 to count - 1 as the script's `random.seed(12345); random.shuffle(...)` orders them.

    The script ran in Python 2. Python 3 draws the same numbers but uses them differently.
    """
    draw = random.Random(12345).random
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        chosen = int(draw() * (last + 1))
        order[last], order[chosen] = order[chosen], order[last]
    return order


def ordered(split: str, items: Sequence[Item]) -> list[Item]:
    """The items in the order of their records: training shuffled, validation sorted by name."""
    if split == VALIDATION:
        return sorted(items)
    items = sorted(items, key=lambda item: (item.label, item.file_name))
    return [items[position] for position in shuffled(len(items))]


def read_minival(path: pathlib.Path) -> set[str]:
    """The names of training images, without ending, in a file with one on each line.

    Raises UserError for other lines. Folders in front of a name are left out.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read --minival={path}: {error}") from None
    names = [train_name(line.rpartition("/")[2]) for line in lines]
    if None in names:
        line = lines[names.index(None)]
        raise UserError(f"--minival={path}: {line!r} is no name such as n01440764_10026.JPEG")
    return set(names)


def hold_out(items: Sequence[Item], names: set[str], subset: bool) -> tuple[list[Item], int]:
    """The training images in order, those with `names` first, and the number of those.

    Raises UserError for too few or too many of them, and without `subset` for missing ones.
    """
    found = [train_name(item.file_name) for item in items]
    if (missing := sorted(names.difference(found))) and not subset:
        raise UserError(
            f"--minival lists {len(missing):,} images that are not in {TRAIN}: "
            f"{', '.join(missing[:5])}. Complete the input, or accept this with --subset"
        )
    held = sum(name in names for name in found)
    least = minival_shards(len(shard_bounds(TRAIN, len(items))) - 1)
    if not least <= held <= len(items) // 2:
        raise UserError(
            f"--minival lists {held:,} of {len(items):,} images; {least:,} to {len(items) // 2:,} "
            "can be held out of training"
        )
    order = sorted(range(len(items)), key=lambda index: found[index] not in names)
    return [items[index] for index in order], held


def shard_bounds(split: str, images: int, held: int | None = None) -> list[int]:
    """Index of the first image of each shard, and the end of the last shard.

    For all of ImageNet these are the script's. A smaller set has a shard for every 64 images; the
    number of shards is a multiple of 8. The first shards, `minival`, have `held` images if given.
    """
    per_run = min(max(images // (64 * RUNS), 1), SHARDS[split] // RUNS)
    if held is not None:
        first = minival_shards(per_run * RUNS)
        bounds = np.linspace(0, held, first + 1)[:-1].astype(int).tolist()
        return bounds + np.linspace(held, images, per_run * RUNS - first + 1).astype(int).tolist()
    runs = itertools.pairwise(np.linspace(0, images, RUNS + 1).astype(int))
    bounds = [np.linspace(*run, per_run + 1).astype(int)[:-1] for run in runs]
    return [*np.concatenate(bounds).tolist(), images]


def minival_shards(shards: int) -> int:
    """Number of the training shards, from the first on, that are `minival`: 20 of 1024."""
    return max(shards * 20 // 1024, 1)


def check(split: str, items: Sequence[Item], subset: bool = False) -> None:
    """Raises UserError for a split with too few images, two of one name, or one of another class.

    Without `subset`, also for one whose images per class are not ImageNet's.
    """
    if len(items) < RUNS:
        raise UserError(f"{split} has {len(items)} images; at least {RUNS} are needed")
    name, count = collections.Counter(item.file_name for item in items).most_common(1)[0]
    if count > 1:
        paths = sorted(item.path for item in items if item.file_name == name)
        raise UserError(
            f"{count} images of {split} are called {name}, in {', '.join(paths[:5])}. Remove "
            "copies; give other images names of their own, as ImageNet's WNID_NUMBER.JPEG"
        )
    # The path of an image in a tar or an ArrayRecord file is that file's.
    check_names((class_names()[i.label], os.path.join(i.path, i.file_name)) for i in items)
    if subset:
        return
    counts = collections.Counter(item.label for item in items)
    low, high = PER_CLASS[split]
    wrong = []
    if len(items) != IMAGES[split]:
        wrong.append(f"{len(items):,} images, and ImageNet's has {IMAGES[split]:,}")
    if missing := [name for label, name in enumerate(class_names()) if label not in counts]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        wrong.append(f"no images of {len(missing)} of 1000 classes ({shown})")
    if odd := [label for label, count in sorted(counts.items()) if not low <= count <= high]:
        wrong.append(
            f"{counts[odd[0]]} images of {class_names()[odd[0]]}, where {low} to {high} are "
            f"expected, and {len(odd) - 1} other classes like it"
        )
    if wrong:
        raise UserError(
            f"{split} has {'; '.join(wrong)}. Complete the input, or accept an incomplete ImageNet "
            "with --subset"
        )
