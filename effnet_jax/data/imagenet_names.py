"""The class, or the number of a validation image, in the names of ImageNet's files."""

import functools
import os
import re
from collections.abc import Iterable

from effnet_jax.errors import UserError

WNID = re.compile(r"n\d{8}")
FOLDER = re.compile(r"n\d{8}(?![^\W_])")  # The folder of a class, also as in "n01440764_tench".
# The copy on the Hugging Face Hub appends the WordNet id.
TRAIN_NAME = re.compile(r"((n\d{8})_\d+)(_n\d{8})?(\.\w+)?", re.IGNORECASE)
# The part of a name that states the class. Copies have names such as "n01440764_18 (1).webp".
STATED = re.compile(r"(?<![^\W_])(?:ILSVRC2012_val_(\d{8})(?!\d)|(n\d{8})_\d+)", re.IGNORECASE)
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.(jpe?g|png)", re.IGNORECASE)


@functools.cache
def validation_classes() -> list[str]:
    """The WordNet ids of the 50,000 validation images in the order of their numbers, from TFDS."""
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(validation_classes())


def stated_class(file_name: str) -> str | None:
    """The WordNet id, of the 1000, that a file's name states; None if there is none, or several."""
    found = set()
    for number, wnid in STATED.findall(file_name):
        if wnid.lower() in _known():
            found.add(wnid.lower())
        elif number and 1 <= int(number) <= 50_000:
            found.add(validation_classes()[int(number) - 1])
    return found.pop() if len(found) == 1 else None


def train_name(file_name: str) -> str | None:
    """A training image's name without its suffix, as n01440764_10026; None for other files."""
    match = TRAIN_NAME.fullmatch(file_name)
    return match and match[1].lower()


def check_names(images: Iterable[tuple[str, str]]) -> None:
    """Raises UserError if the names of image files state another class than their folder.

    `images` are pairs of class and path. Only classes whose name begins with one of ImageNet's 1000
    WordNet ids are compared, because people may group the files under other names.
    """
    wrong, compared = [], 0
    for name, path in images:
        folder = FOLDER.match(name)
        if not folder or folder[0] not in _known():
            continue
        if stated := stated_class(os.path.basename(path)):
            compared += 1
            if stated != folder[0]:
                wrong.append(f"{path} is of {stated}")
    if wrong:
        raise UserError(
            f"{len(wrong):,} of {compared:,} images are in the folder of another class than their "
            f"ImageNet file names state: {', '.join(wrong[:5])}{', ...' * (len(wrong) > 5)}. "
            "Move each to the folder of its class, or unpack the images again"
        )
