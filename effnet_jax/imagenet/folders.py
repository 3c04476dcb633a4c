"""ImageNet's evaluation sets as their authors ship them: folders of images, labelled as by TFDS."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from effnet_jax.data.folders import FolderSource, list_classes
from effnet_jax.data.imagenet_names import VALIDATION_NAME, WNID, stated_class
from effnet_jax.data.sources import MOST_LABELS
from effnet_jax.errors import UserError
from effnet_jax.imagenet.dataset import CLASSES, IMAGES, NAME, VALIDATION, class_names
from effnet_jax.imagenet.inputs import find, labels_of, say

# The archives of github.com/modestyachts/ImageNetV2; their folders are labels, 0 to 999.
V2_FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "topimages": "imagenetv2-top-images-format-val",
}


def open_set(data: ConfigDict) -> FolderSource | None:
    """The images of an evaluation set, `data.name`, in folders at or below `data.data_dir`.

    Labels are those of all 1000 classes; of imagenet2012_real, int32 [MOST_LABELS]. None where
    there is no such folder. Raises UserError where there are several, or one of another set.
    """
    root, name = pathlib.Path(data.data_dir).expanduser(), data.name
    if not root.is_dir() or data.eval_split not in (VALIDATION, "test"):
        return None
    places = _places(root, name)
    if not places:
        return None
    if len(places) > 1:
        raise UserError(f"{root} has several sets; give one of {' '.join(map(str, places))}")
    (place,) = places
    labels = _numbered(place) if name.startswith("imagenet_v2/") else labels_of(place)
    known = set(data.eval_classes or class_names())
    if others := {class_names()[label] for label in labels.values()} - known:
        raise UserError(
            f"{place} isn't {name}: {len(others)} classes, {', '.join(sorted(others)[:5])} and so "
            f"on, are none of its {len(known)}"
        )
    # The original validation images have names of their own, which no other set uses.
    names = {path: os.path.basename(path) for path in labels}
    if name.startswith(NAME):
        wrong = [path for path in labels if not VALIDATION_NAME.fullmatch(names[path])]
    else:
        wrong = [path for path in labels if stated_class(names[path])]
    if wrong:
        raise UserError(
            f"{place} isn't {name}: {len(wrong):,} of {len(labels):,} images have names that don't "
            f"belong to it, such as {wrong[0]}"
        )
    if name == "imagenet2012_real":
        labels = _reassessed(root, labels)
    say(f"{name}: reading {len(labels):,} images in {place}")
    return FolderSource(class_names(), sorted(labels.items()), place)


def _places(root: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The folders that may be a set's, with a folder for each class or validation images."""
    dataset, _, part = name.partition("/")
    if dataset == "imagenet2012_corrupted":
        below = pathlib.Path(*part.rsplit("_", 1))  # CORRUPTION/SEVERITY
        return [place / below for place in find(root, lambda f: (f / below).is_dir(), 2)]
    if dataset == "imagenet_v2":
        others = {folder for variant, folder in V2_FOLDERS.items() if variant != part}
        return [f for f in find(root, lambda f: _has(f, str.isdecimal), 1) if f.name not in others]

    def has_images(folder: pathlib.Path) -> bool:
        return folder.name != "train" and _has(folder, WNID.fullmatch, VALIDATION_NAME.fullmatch)

    return find(root, has_images, 4 if dataset.startswith(NAME) else 1)


def _has(folder: pathlib.Path, *tests: Callable[[str], object]) -> bool:
    return any(test(name) for name in os.listdir(folder) for test in tests)


def _numbered(folder: pathlib.Path) -> dict[str, int]:
    """Labels by path of the images in folders whose names are labels, 0 to 999."""
    classes = list_classes(folder)
    if wrong := [name for name in classes if not (name.isdecimal() and int(name) < CLASSES)]:
        raise UserError(f"{folder} has the class folder {wrong[0]!r}, none of 0 to {CLASSES - 1}")
    return {path: int(name) for name, paths in classes.items() for path in paths}


def _reassessed(root: pathlib.Path, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Sets of labels by path, int32 [MOST_LABELS], from real.json: a list for each number.

    The file is that of github.com/google-research/reassessed-imagenet.
    """
    found = find(root, lambda folder: (folder / "real.json").is_file())
    if len(found) != 1:
        raise UserError(
            f"{root} has {len(found)} files real.json, and one is needed next to the validation "
            "images: that of github.com/google-research/reassessed-imagenet"
        )
    try:
        sets = json.loads((found[0] / "real.json").read_text())
        numbers = {path: VALIDATION_NAME.fullmatch(os.path.basename(path))[1] for path in paths}
        if len(sets) != IMAGES[VALIDATION] or not set().union(*sets) <= set(range(CLASSES)):
            raise ValueError(f"not {IMAGES[VALIDATION]:,} lists of labels from 0 to {CLASSES - 1}")
        rows = np.full((len(sets), MOST_LABELS), -1, np.int32)
        for row, labels in zip(rows, sets, strict=True):
            row[: len(labels)] = labels
    except (ValueError, TypeError) as error:
        raise UserError(f"{found[0] / 'real.json'} can't be read: {error}") from None
    return {path: rows[int(number) - 1] for path, number in numbers.items()}
