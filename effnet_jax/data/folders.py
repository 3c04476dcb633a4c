"""Folders of images: finds the files of each class, checks the names of folders, reads images."""

import collections
import contextlib
import filecmp
import glob
import hashlib
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from ml_collections import ConfigDict

from effnet_jax.data import imagenet_names
from effnet_jax.data.sources import Record, Source, alike, count_by_class, first_few, uneven
from effnet_jax.errors import UserError

# Up to this many files, copies are found by size; above, only among files of the same name.
COMPARED = 100_000
# Suffixes, in lower case, of the images that `decode` reads.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Names, in lower case, of the files and folders that operating systems leave in folders.
SYSTEM = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"),
    *("desktop.ini", "system volume information", "thumbs.db"),
}
# Names of folders that are splits of a data set and not classes, or that have no photographs.
SPLIT = re.compile(
    r"((seg|x)_)?(train|test|val|valid|validation|pred|dev|development|eval|evaluation|holdout)"
    r"(ing)?([ _-]?(set|data|images|\d+))?",
    re.I,
)
MASKS = re.compile(
    r"(masks?|labels?|annot(ation)?s?|segmentations?|ground[ _-]?truths?|gts?|depth)", re.I
)
PICTURES = re.compile(r"images?|imgs?|rgb", re.I)
# A mask's name without its suffix: the name of its image, then "_mask" or similar.
MASK_FILE = re.compile(r"(.+)[ _-](mask|seg|segmentation|gt)([ _-]\d+)?", re.I)


class FolderSource(Source):
    """Image files, as pairs of path and label (see Record): some of the `total` in a `place`.

    `left_out` counts, by suffix, the files in `place` that are not read.
    """

    by_content = True

    def __init__(
        self,
        classes: tuple[str, ...],
        records: Sequence[tuple[str, int]],
        place: pathlib.Path = pathlib.Path(),
        left_out: collections.Counter | None = None,
        total: int | None = None,
    ):
        super().__init__(classes, records)
        self._place, self._total = place, total or len(records)
        self._left_out = left_out or collections.Counter()

    def __getitem__(self, index: int) -> Record:
        path, label = self._records[index]
        with open(path, "rb", buffering=0) as file:
            return {"image": file.read(), "label": label}

    def describe(self, index: int) -> str:
        # File names may be in another encoding than messages and pages.
        return os.fsencode(self._records[index][0]).decode("utf-8", "backslashreplace")

    @property
    def is_held_out(self) -> bool:
        """Whether these are only some of the images in the folder or list."""
        return len(self) < self._total

    def count_shared(self, other: "FolderSource") -> int:
        """The number of these images that are also in `other`: the same file, or a copy."""
        own, theirs = ([path for path, _ in each._records] for each in (self, other))
        if len(theirs) > COMPARED:
            names = set(map(os.path.basename, own))
            theirs = [path for path in theirs if os.path.basename(path) in names]
        sizes = set(map(_size, own)) - {-1}
        alike = collections.defaultdict(list)
        for path in theirs:
            if _size(path) in sizes:
                alike[_peek(path)].append(path)
        return sum(
            any(filecmp.cmp(path, each, shallow=False) for each in alike.get(_peek(path), ()))
            for path in own
        )

    def _counts(self) -> np.ndarray:
        """The number of images of each class."""
        return np.bincount([label for _, label in self._records], minlength=len(self.classes))

    def warnings(self) -> list[str]:
        lines = alike(self.classes, "put their images into one folder")
        if shared := self._shared_folders():
            lines.append(
                f"warning: all class folders contain the same folders: {first_few(shared)}. If "
                "those are the classes, as in folds or years, move them up: DIR/CLASS/*.jpg"
            )
        if masks := self._masks():
            lines.append(
                f"warning: {len(masks):,} images have the names of masks of other images, such as "
                f"{masks[0]}; they count as images of their class. Move them elsewhere"
            )
        return lines + uneven(self.classes, self._counts())

    def _shared_folders(self) -> set[str]:
        """The folders in class folders, if all have the same ones and all images are in them."""
        inner = collections.defaultdict(set)
        for path, label in self._records:
            folders = path.removeprefix(f"{self._place}{os.sep}").split(os.sep)[1:-1]
            if not folders:
                return set()
            inner[label].add(folders[0])
        first = inner[0]
        return first if len(first) > 1 and all(each == first for each in inner.values()) else set()

    def _masks(self) -> list[str]:
        """The images named like another one in their folder, with "_mask" or similar appended."""
        masks = {}
        for path, _ in self._records:
            if match := MASK_FILE.fullmatch(os.path.splitext(path)[0]):
                masks[path] = match[1]
        images = set(masks.values())
        present = images.intersection(os.path.splitext(path)[0] for path, _ in self._records)
        return [path for path, image in masks.items() if image in present]

    def summary(self) -> str:
        line = f"{self._place}: {len(self):,} of {self._total:,} images, {self._list_classes()}"
        if np.ndim(self._records[0][1]):
            return f"{line}; sets of labels"
        counted = count_by_class(self.classes, self._counts())
        return f"{line}{counted}{list_endings(self._left_out)}"


def _size(path: str) -> int:
    """A file's size, or -1 if it is missing, which is reported elsewhere."""
    with contextlib.suppress(OSError):
        return os.path.getsize(path)
    return -1


def _peek(path: str) -> tuple[int, bytes]:
    """The size of a file and a digest of some of its bytes, which distinguish most files."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(_size(path) // 2)
        return _size(path), hashlib.sha256(file.read(4096)).digest()
    return -1, path.encode(errors="surrogateescape")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or belongs to the system, by its name."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return name.lower().endswith(IMAGES) and not is_hidden(name)


def list_images(arguments: Sequence[str]) -> list[str]:
    """Expands the folders and patterns among `arguments` to the paths of images, in order.

    Prints how many other files there are. Raises UserError for a folder without images or with a
    link to a folder that is read already, and for a pattern that matches no image.
    """
    paths = []
    for argument in arguments:
        is_folder = os.path.isdir(argument)
        pattern = os.path.join(glob.escape(argument), "**") if is_folder else argument
        if not glob.has_magic(pattern) or os.path.isfile(argument) or "://" in argument:
            paths.append(argument)
            continue
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        inner = argument if is_folder else "."  # Hidden and system files below it are skipped.
        parts = {path: os.path.relpath(path, inner).split(os.sep) for path in found}
        images = sorted(
            path
            for path, names in parts.items()
            if is_image(names[-1]) and not any(is_hidden(name) for name in names if name != "..")
        )
        if not images:
            raise UserError(f"no image in {argument} ({len(found)} files)")
        places = {}
        for place in dict.fromkeys(map(os.path.dirname, images)):
            first = places.setdefault(os.path.realpath(place), place)
            if first != place:  # A link to a parent folder would be followed forty times.
                raise UserError(f"{place} links to {first}, which is read already; remove the link")
        if others := len(found) - len(images):
            print(f"{argument}: {others} of {len(found)} files are not images", file=sys.stderr)
        paths += images
    return paths


def list_endings(left_out: collections.Counter) -> str:
    """The number of files that are left out, by suffix, for a summary or a message."""
    listed = ", ".join(f"{count:,} {ending}" for ending, count in left_out.most_common(5))
    loose = any(ending.partition(" ")[0] in IMAGES and " " in ending for ending in left_out)
    remedy = "; move each image in no class folder into the folder of its class" * loose
    return f"; files left out: {left_out.total():,} ({listed}){remedy}" if left_out else ""


def _list_images(
    folder: pathlib.Path, left_out: collections.Counter, others: set[str]
) -> list[str]:
    """The image files of a class, at any depth, sorted; counts other files by suffix.

    `others` are the other classes. Images in an inner folder with such a name may be of either
    class, and are refused.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"can't read {error.filename}: {error.strerror}")

    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            raise UserError(f"{root} links to {real}, which is read already; remove the link")
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        images = [name for name in names if is_image(name)]
        inner = pathlib.Path(root).name
        is_odd = SPLIT.fullmatch(inner) or MASKS.fullmatch(inner) or inner in others
        if images and root != str(folder) and is_odd:
            raise UserError(
                f"{root} has images, but is named like a split, masks or another class; move it "
                f"out of the class {folder.name!r}, or rename it if they are images of this class"
            )
        rest = set(names).difference(images, filter(is_hidden, names))
        left_out.update(os.path.splitext(name)[1].lower() or "without ending" for name in rest)
        found += [os.path.join(root, name) for name in images]
    return sorted(found)


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))


def list_classes(
    folder: pathlib.Path,
    left_out: collections.Counter | None = None,
    other: pathlib.Path | None = None,
) -> dict[str, list[str]]:
    """The image files, at any depth, of every class folder in `folder`, sorted.

    Names of classes are in Unicode's composed form, NFC, because file systems change the form.
    Files that are left out are counted in `left_out` by suffix, except for hidden ones. `other` is
    the folder of another split: if `folder` has too few classes, the message names those missing.
    """
    left_out = collections.Counter() if left_out is None else left_out
    entries = _entries(folder)
    if broken := [entry for entry in entries if entry.is_symlink() and not entry.exists()]:
        raise UserError(f"{broken[0]} is a broken link; mount its target, or remove the link")
    folders = [entry for entry in entries if entry.is_dir()]
    _check_folders(folder, folders)
    by_name = {unicodedata.normalize("NFC", entry.name): entry for entry in folders}
    if twins := [str(entry) for entry in folders if entry not in by_name.values()]:
        raise UserError(
            f"{folder} has two class folders with the name {ascii(twins[0])[1:-1]}, in two forms "
            "of Unicode (NFC and NFD); put their images into one folder"
        )
    _check_names(folder, list(by_name))
    left_out.update(
        f"{entry.suffix.lower() or 'without ending'} in no class folder"
        for entry in entries
        if not entry.is_dir()
    )
    if len(folders) < 2:
        _refuse_few(folder, list(by_name), other)
    found = {
        name: _list_images(by_name[name], left_out, {*by_name} - {name}) for name in sorted(by_name)
    }
    if empty := [name for name, paths in found.items() if not paths]:
        others = f" and {len(empty) - 1} other class folders" if len(empty) > 1 else ""
        raise UserError(
            f"no image in {folder / empty[0]}{others}; remove the "
            f"empty folder or add images ({', '.join(IMAGES)}){list_endings(left_out)}"
        )
    imagenet_names.check_names((name, path) for name, paths in found.items() for path in paths)
    return found


def _refuse_few(folder: pathlib.Path, names: list[str], other: pathlib.Path | None) -> NoReturn:
    """Raises the UserError for a folder with fewer than two classes, `names`."""
    found = f"1 class folder, {names[0]}," if names else "no class folder"
    remedy = "DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg"
    expected = [entry.name for entry in _entries(other) if entry.is_dir()] if other else []
    if missing := [name for name in expected if name not in names]:
        remedy = f"add {first_few(missing)}, which {other} has"
    raise UserError(f"{folder} has {found} and at least 2 are needed: {remedy}")


def _check_folders(folder: pathlib.Path, folders: list[pathlib.Path]) -> None:
    """Raises UserError for a class name that isn't UTF-8, and for two names of one folder."""
    places = {}
    for entry in folders:
        try:
            entry.name.encode()
        except UnicodeError:
            raise UserError(
                f"{ascii(str(folder))[1:-1]} has a class folder with the name "
                f"{os.fsencode(entry.name)!r}, which isn't UTF-8; rename it"
            ) from None
        first = places.setdefault(os.path.realpath(entry), entry)
        if first != entry:
            raise UserError(f"{first} and {entry} are the same folder; remove the link")


def _check_names(folder: pathlib.Path, names: list[str]) -> None:
    """Raises UserError for folders that are not classes but splits, or images and their masks."""
    odd = [name for name in names if SPLIT.fullmatch(name)]
    if all(name in odd or MASKS.fullmatch(name) or PICTURES.fullmatch(name) for name in names):
        odd = names
    is_vehicle = len(odd) == 1 < len(names) and odd[0].lower() == "train"
    if not odd or (is_vehicle and not any(each.is_dir() for each in (folder / odd[0]).iterdir())):
        return
    train = next((name for name in odd if "train" in name.lower()), "NAME")
    others = sorted({*odd} - {train}, key=lambda name: "val" not in name.lower())
    raise UserError(
        f"{folder} has {', '.join(odd[:5])}, which are names of parts of a data set and not of "
        "classes. Give the folders that contain class folders: train.py takes "
        f"--config.data.train_split={train} --config.data.eval_split={(*others, 'NAME')[0]}, and "
        f"eval.py --data_dir={folder}/NAME. If they are classes, rename them"
    )


def folder_source(config: ConfigDict, split: str) -> FolderSource:
    """Opens a split of the image folder `config.data_dir`: SPLIT/CLASS/... if SPLIT exists.

    Otherwise the class folders are in the folder itself, and the evaluation split is the fraction
    `config.holdout` of each class, at least one file.
    """
    if not config.data_dir:
        raise UserError("no image folder given; add --config.data.data_dir=DIR")
    root = pathlib.Path(config.data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"no image folder {root} (config.data.data_dir)")
    place, left_out = root, collections.Counter()
    if (root / split).is_dir():
        place = root / split
        other = root / (config.eval_split if split == config.train_split else config.train_split)
        by_class = list_classes(place, left_out, other if other.is_dir() else None)
    elif (root / config.train_split).is_dir() or (root / config.eval_split).is_dir():
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise UserError(
            f"{root} has no folder {split!r}; set --config.data.train_split and "
            f"--config.data.eval_split to two of: {', '.join(folders)}"
        )
    else:
        by_class = list_classes(root, left_out)
    total = sum(map(len, by_class.values()))
    if place == root and split != ".":
        by_class = {
            name: hold_out(root / name, paths, config.holdout, split == config.eval_split)
            for name, paths in by_class.items()
        }
    paths = [(path, label) for label, each in enumerate(by_class.values()) for path in each]
    return FolderSource(tuple(by_class), paths, place, left_out, total)


def hold_out(
    folder: pathlib.Path | str, paths: list[str], share: float, evaluation: bool
) -> list[str]:
    """The files of a class that are held out for `evaluation`, evenly spaced, or the others."""
    if len(paths) < 2:
        raise UserError(
            f"{folder} has a single image, which can't be used for both training and evaluation; "
            "add images, or make train/ and val/ folders"
        )
    # The number of files held out of the first 0, 1, 2, ... files.
    counts = np.floor(np.arange(len(paths) + 1) * share + 1e-9)
    counts[-1] = max(counts[-1], 1)
    return [path for path, step in zip(paths, np.diff(counts), strict=True) if step == evaluation]
