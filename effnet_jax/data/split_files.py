"""Data sets as their authors publish them: folders of images, and files that list the splits.

Splits are train, validation, trainval (both) and test. FGVC Aircraft has its own validation split.
For the others it is the fraction `config.data.holdout` of each class of the training images.
"""

import collections
import csv
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from effnet_jax.data.folders import FolderSource, hold_out
from effnet_jax.errors import UserError, check_choice


class Listed(NamedTuple):
    """An official split: paths of images and their labels, as listed in `file`.

    `validation` is whether the authors provide a validation split.
    """

    file: pathlib.Path
    classes: tuple[str, ...]
    records: list[tuple[str, int]]
    validation: bool = False


def _find(root: pathlib.Path, *names: str) -> pathlib.Path:
    """The path of the first of `names` that exists in a data set's folder."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise UserError(
        f"{root} has no {' or '.join(names)}; config.data.data_dir should be the folder that the "
        "authors' archive unpacks to (docs/transfer.md)"
    )


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"can't read {path}: {error}") from None


def _aircraft(root: pathlib.Path, split: str) -> Listed:
    """FGVC Aircraft (arXiv 1306.5151), by variant: "IMAGE VARIANT" on each line."""
    root = _find(root, "variants.txt", "data/variants.txt").parent
    classes = tuple(_lines(root / "variants.txt"))
    name = {"validation": "val"}.get(split, split)
    file, records = _find(root, f"images_variant_{name}.txt"), []
    for number, line in enumerate(_lines(file), 1):
        image, _, variant = line.partition(" ")
        if variant not in classes:
            raise UserError(f"{file}, line {number}: {variant!r} is not in variants.txt")
        records.append((str(root / "images" / f"{image}.jpg"), classes.index(variant)))
    return Listed(file, classes, records, validation=True)


def _birdsnap(root: pathlib.Path, split: str) -> Listed:
    """Birdsnap 1.1 (readme.txt of its archive): images.txt except test_images.txt for training."""
    root = _find(root, "species.txt", "birdsnap/species.txt").parent
    species, images = (
        list(csv.DictReader(_lines(_find(root, f"{name}.txt")), delimiter="\t"))
        for name in ("species", "images")
    )
    file = _find(root, "test_images.txt")
    test = _lines(file)[1:]
    try:
        labels = {row["id"]: label for label, row in enumerate(species)}
        listed = {row["path"]: labels[row["species_id"]] for row in images}
        classes = tuple(row["common"] for row in species)
    except KeyError as error:
        raise UserError(f"images.txt and species.txt in {root} don't have {error}") from None
    if unknown := [path for path in test if path not in listed]:
        text = f"{file} lists {len(unknown)} images that images.txt lacks"
        raise UserError(f"{text}: {', '.join(unknown[:5])}")
    chosen, folder = set(test), _find(root, "download/images", "images")
    records = [
        (str(folder / path), label)
        for path, label in listed.items()
        if (path in chosen) == (split == "test")
    ]
    return Listed(file if split == "test" else root / "images.txt", classes, records)


def _cars(root: pathlib.Path, split: str) -> Listed:
    """Stanford Cars (README.txt of its devkit): MATLAB annotations with labels from 1."""
    import scipy.io

    part = "test" if split == "test" else "train"
    name = {"test": "cars_test_annos_withlabels.mat", "train": "cars_train_annos.mat"}[part]
    root = _find(root, "devkit", "stanford_cars/devkit").parent
    file, meta = _find(root, f"devkit/{name}", name), _find(root, "devkit/cars_meta.mat")
    try:
        names, rows = (
            scipy.io.loadmat(path, squeeze_me=True)[key].reshape(-1)
            for path, key in ((meta, "class_names"), (file, "annotations"))
        )
        records = [
            (str(root / f"cars_{part}" / row["fname"]), int(row["class"]) - 1) for row in rows
        ]
    except Exception as error:  # scipy raises many kinds.
        raise UserError(f"can't read the annotations in {file} and {meta}: {error}") from None
    if wrong := [label + 1 for _, label in records if not 0 <= label < len(names)]:
        raise UserError(f"{file} has the class {wrong[0]}; classes are 1 to {len(names)}")
    return Listed(file, tuple(map(str, names)), records)


READERS: dict[str, Callable[[pathlib.Path, str], Listed]] = {
    "fgvc_aircraft": _aircraft,
    "birdsnap": _birdsnap,
    "cars196": _cars,
}
SPLITS = ("train", "validation", "trainval", "test")


def _check_images(file: pathlib.Path, paths: Iterable[str]) -> None:
    """Raises UserError for images that are missing, or listed twice."""
    counts = collections.Counter(paths)
    folders = {os.path.dirname(path) for path in counts}
    files = {folder: set(os.listdir(folder)) for folder in folders if os.path.isdir(folder)}
    missing = [p for p in counts if os.path.basename(p) not in files.get(os.path.dirname(p), ())]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(counts):,} images that {file} lists are missing: "
            f"{', '.join(missing[:5])}. Add them, or remove their lines from a copy of the file"
        )
    if twice := [path for path, count in counts.items() if count > 1]:
        raise UserError(f"{file} lists {len(twice)} images twice: {', '.join(twice[:5])}")


def open_split(data: ConfigDict, split: str) -> FolderSource:
    """Opens a split of the data set `data.name` in `data.data_dir`, as its authors list it.

    Raises UserError if a file or an image that it lists is missing, or if labels don't fit.
    """
    read = READERS[check_choice("config.data.name", data.name, READERS)]
    check_choice(f"split of {data.name}", split, SPLITS)
    root = pathlib.Path(data.data_dir or "").expanduser()
    if not data.data_dir or not root.is_dir():
        raise UserError(f"no folder {root} (config.data.data_dir) with the images of {data.name}")
    file, classes, records, has_validation = read(root, split)
    _check_images(file, (path for path, _ in records))
    total = len(records)
    if split in ("train", "validation") and not has_validation:
        by_class = collections.defaultdict(list)
        for path, label in records:
            by_class[label].append(path)
        records = [
            (path, label)
            for label, paths in sorted(by_class.items())
            for path in hold_out(classes[label], paths, data.holdout, split == "validation")
        ]
    return FolderSource(classes, records, file, total=total)
