"""Indexes the forms of ImageNet that can be prepared: the official tars, folders, a copy by TFDS.

Each becomes a list of `Item` for each split. Tars are indexed from header to header, not extracted.
"""

import functools
import hashlib
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from effnet_jax.data import sources
from effnet_jax.data.folders import is_image, list_classes
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet.dataset import ARCHIVES, NAME, TRAIN, VALIDATION, Item, features
from effnet_jax.run.writers import console

BLOCK = 512  # Bytes: tars are made of blocks.
NOT_ENTERED = re.compile(r"\..*|n\d{8}|Annotations")
VALIDATION_FOLDERS = ("val", "validation")

say = functools.partial(console.print, markup=False)


class Input(NamedTuple):
    """Both splits, unordered; `archives` are the tars whose checksums can be compared."""

    kind: str
    splits: dict[str, list[Item]]
    archives: dict[str, pathlib.Path]


def open_input(root: pathlib.Path) -> Input:
    """Detects the form of ImageNet in `root` and indexes it; raises UserError if there is none."""
    say(f"indexing {root}")
    if not root.is_dir():
        raise UserError(f"no directory {root} (--from)")
    copies = [root, *root.glob("*/"), *root.glob(f"{NAME}/*/")]
    copies = [place for place in copies if (place / "dataset_info.json").is_file()]
    places = find(root, lambda place: _tars(place) or _split_folders(place), 0 if copies else 3)
    if len(found := places or copies) > 1:
        raise UserError(f"{root} has several data sets; give one: {' '.join(map(str, found))}")
    if not places and copies:
        return _tfds(copies[0])
    for place in places:
        tars, folders = _tars(place), _split_folders(place)
        missing = [archive.name for split, archive in ARCHIVES.items() if split not in tars]
        if missing and not folders:
            raise UserError(f"{place} has one of the two tars, but {missing[0]} is missing")
        say(f"reading {' and '.join(map(str, (folders if missing else tars).values()))}")
        if not missing:
            return Input("tars", {split: _tar(split, path) for split, path in tars.items()}, tars)
        return Input("a folder", {split: _folder(path) for split, path in folders.items()}, {})
    raise UserError(
        f"{root} (--from) has no known form of ImageNet. Looked for: {ARCHIVES[TRAIN].name} and "
        f"{ARCHIVES[VALIDATION].name}; folders train/WNID and val or validation (of images, or of "
        f"folders WNID), all these at most 3 levels down; a copy by TFDS, with "
        f"dataset_info.json in it, in */ or in {NAME}/*/"
    )


def find(
    root: pathlib.Path, wanted: Callable[[pathlib.Path], object], levels: int = 3
) -> list[pathlib.Path]:
    """The folders that are `wanted`: `root`, or those on the first level below that has any.

    The archive on Kaggle has its images 3 levels down, in ILSVRC/Data/CLS-LOC, and in Annotations
    the same folders without images. That is not entered, nor are classes.
    """
    level = [root]
    for _ in range(levels + 1):
        if found := [folder for folder in level if wanted(folder)]:
            return found
        below = (folder for parent in level for folder in sorted(parent.iterdir()))
        level = [f for f in below if f.is_dir() and not NOT_ENTERED.fullmatch(f.name)]
    return []


def _tars(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The official tars in a folder, by split."""
    tars = {split: folder / archive.name for split, archive in ARCHIVES.items()}
    return {split: path for split, path in tars.items() if path.is_file()}


def _split_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of both splits in a folder, or {}."""
    found = [folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()]
    if not found or not (folder / "train").is_dir():
        return {}
    if len(found) > 1:
        raise UserError(f"{folder} has both {' and '.join(VALIDATION_FOLDERS)}; remove one of them")
    return {TRAIN: folder / "train", VALIDATION: found[0]}


def read_item(item: Item) -> bytes:
    """The encoded image; ValueError if its file is cut short, UserError if it can't be read."""
    try:
        if ".array_record-" in item.path:
            return _example(sources.array_record(item.path), item.offset)["image"]
        with open(item.path, "rb", buffering=0) as file:
            file.seek(item.offset)
            data = file.read(item.length)
    except (OSError, RuntimeError) as error:
        raise UserError(f"can't read {item.path}: {error}") from None
    if len(data) != item.length:
        raise ValueError("the file ends early")
    return data


def _members(file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Base name, offset and length in bytes of every file in the tar that lies in [start, end).

    Raises tarfile.ReadError for a damaged header, which tarfile takes for the end of the archive.
    """
    position = start
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if position + BLOCK > end or len(block) < BLOCK:
            raise tarfile.ReadError(f"ends early, at byte {position:,}, where a header should be")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(
                f"has a damaged header at byte {position:,} ({error})"
            ) from None
        data = position + BLOCK
        if data + info.size > end:
            raise tarfile.ReadError(
                f"ends early: {info.name}, which begins at byte {data:,}, needs {info.size:,} "
                f"bytes and {end - data:,} are there"
            )
        name = os.path.basename(info.name)
        if info.isreg() and not name.startswith("."):
            yield name, data, info.size
        position = data + -(-info.size // BLOCK) * BLOCK


def md5(path: pathlib.Path) -> str:
    """The checksum of a file; minutes for the training tar."""
    say(f"computing the checksum of {path}, {path.stat().st_size / 1e9:,.1f} GB")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _tar(split: str, path: pathlib.Path) -> list[Item]:
    try:
        with open(path, "rb") as file:
            return list(_tar_items(split, path, file))
    except tarfile.ReadError as error:
        expected = ARCHIVES[split]
        raise UserError(
            f"{path} {error}. It has {path.stat().st_size:,} bytes and the MD5 {md5(path)}; "
            f"ImageNet's has {expected.size:,} and {expected.md5}. Download it again"
        ) from None


def _tar_items(split: str, path: pathlib.Path, file: BinaryIO) -> Iterator[Item]:
    """The images of a tar; the training tar has a tar for each class."""
    for name, start, size in _members(file, 0, path.stat().st_size):
        if split == VALIDATION:
            yield Item(name, imagenet.validation_label(name, str(path)), str(path), start, size)
            continue
        label = imagenet.label_of(name.removesuffix(".tar"), f"{name} in {path}")
        for image, *place in _members(file, start, start + size):
            yield Item(image, label, str(path), *place)


def labels_of(folder: pathlib.Path) -> dict[str, int]:
    """Labels by path of the images in folders of classes, or side by side as in the tar of val."""
    paths = [str(folder / name) for name in os.listdir(folder) if is_image(name)]
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder)):
        if paths:
            raise UserError(f"{folder} has folders and {len(paths):,} images next to them")
        classes = list_classes(folder)
        labels = {wnid: imagenet.label_of(wnid, str(folder / wnid)) for wnid in classes}
        return {path: labels[wnid] for wnid, paths in classes.items() for path in paths}
    return {path: imagenet.validation_label(os.path.basename(path), path) for path in paths}


def _folder(folder: pathlib.Path) -> list[Item]:
    """The images of a split's folder."""
    if tars := [path for path in folder.glob("*.tar") if not path.with_suffix("").is_dir()]:
        raise UserError(
            f"{folder} has {len(tars)} tars of classes that are not unpacked, such as "
            f"{tars[0].name}; unpack each to a folder of its name, or give the tars they come from"
        )
    return [
        Item(os.path.basename(path), label, path, 0, os.path.getsize(path))
        for path, label in labels_of(folder).items()
    ]


def _tfds(folder: pathlib.Path) -> Input:
    """Both splits of a copy that TFDS, or this program, has written."""
    import tensorflow_datasets as tfds

    info = tfds.core.read_only_builder.builder_from_directory(folder).info
    missing = {TRAIN, VALIDATION, *features()} - {*info.splits, *info.features}
    if info.name != NAME or missing:
        raise UserError(
            f"{folder} has {info.name} with {', '.join([*info.splits, *info.features])}; needed is "
            f"{NAME} with {TRAIN}, {VALIDATION}, {', '.join(features())}"
        )
    if tuple(info.features["label"].names) != imagenet.class_names():
        raise UserError(f"the classes of {folder} are not ImageNet's 1000")
    sources.use_array_record(info)
    splits = {}
    for split in (TRAIN, VALIDATION):
        instructions = info.splits[split].file_instructions
        sources.check_files(instructions)
        splits[split] = [item for each in instructions for item in _records(str(each.filename))]
    return Input("a copy by TFDS", splits, {})


def _records(path: str) -> Iterator[Item]:
    reader = sources.array_record(path)
    try:
        for index in range(reader.num_records()):
            found = _example(reader, index)
            length = len(found["image"])
            yield Item(found["file_name"].decode(), int(found["label"]), path, index, length)
    except RuntimeError as error:
        raise UserError(f"{path} is damaged: {error}; copy it again") from None


def _example(reader: Any, index: int) -> dict[str, Any]:
    """A record of an ArrayRecord file with its image still encoded."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return features().deserialize_example_np(reader.read([index])[0], decoders=decoders)
