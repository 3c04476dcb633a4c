"""Indexes the forms of ImageNet that can be prepared: the official tars, folders, a copy by TFDS.

Each becomes one list of `Item` a split. Tars are indexed by seeking from header to header; nothing
is extracted.
"""

import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet.dataset import ARCHIVES, NAME, TRAIN, VALIDATION, Item, features

BLOCK = 512  # Bytes: tars are made of blocks.


class Input(NamedTuple):
    """Both splits, unordered; `archives` are the tars whose checksums can be compared."""

    kind: str
    splits: dict[str, list[Item]]
    archives: dict[str, pathlib.Path]


class BrokenTar(UserError):
    """The tar of a split ends early, or has a damaged header."""

    split: str
    path: pathlib.Path


def open_input(root: pathlib.Path) -> Input:
    """Detects the form of ImageNet in `root` and indexes it; raises UserError if there is none."""
    if not root.is_dir():
        raise UserError(f"no directory {root} (--from)")
    tars = {split: root / archive.name for split, archive in ARCHIVES.items()}
    if any(path.exists() for path in tars.values()):
        if missing := [path.name for path in tars.values() if not path.is_file()]:
            raise UserError(f"{root} has one of the two tars, but {missing[0]} is missing")
        return Input("tars", {split: _tar(split, path) for split, path in tars.items()}, tars)
    if (root / "train").is_dir() and (root / "val").is_dir():
        splits = {TRAIN: _folder(root / "train"), VALIDATION: _folder(root / "val")}
        return Input("a folder", splits, {})
    places = [root, *root.glob("*/"), *root.glob(f"{NAME}/*/")]
    if found := [place for place in places if (place / "dataset_info.json").is_file()]:
        if len(found) > 1:
            raise UserError(f"{root} has several data sets; give one: {' '.join(map(str, found))}")
        return _tfds(found[0])
    raise UserError(
        f"{root} (--from) has no known form of ImageNet. Looked for: {tars[TRAIN].name} and "
        f"{tars[VALIDATION].name}; folders train/WNID and val (of images, or of folders WNID); a "
        f"copy by TFDS, with dataset_info.json in it, in */ or in {NAME}/*/"
    )


def read_item(item: Item) -> bytes:
    """The encoded image.

    Raises ValueError if the file is shorter than it was, UserError if it can't be read.
    """
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

    tarfile takes a damaged header for the end of the archive; here it is an error.
    """
    position = start
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if position + BLOCK > end or len(block) < BLOCK:
            raise BrokenTar(f"ends early, at byte {position:,}, where a header should be")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BrokenTar(f"has a damaged header at byte {position:,} ({error})") from None
        data = position + BLOCK
        if data + info.size > end:
            raise BrokenTar(
                f"ends early: {info.name}, which begins at byte {data:,}, needs {info.size:,} "
                f"bytes and {end - data:,} are there"
            )
        name = os.path.basename(info.name)
        if info.isreg() and not name.startswith("."):
            yield name, data, info.size
        position = data + -(-info.size // BLOCK) * BLOCK


def _tar(split: str, path: pathlib.Path) -> list[Item]:
    """The images of a tar: in training of the tars of classes inside it."""
    try:
        with open(path, "rb") as file:
            members = _members(file, 0, path.stat().st_size)
            if split == TRAIN:
                return list(_in_classes(file, path, members))
            labeled = ((imagenet.validation_label(m[0], str(path)), *m) for m in members)
            return [Item(name, label, str(path), *place) for label, name, *place in labeled]
    except BrokenTar as error:
        error.split, error.path = split, path
        raise


def _in_classes(
    file: BinaryIO, path: pathlib.Path, tars: Iterator[tuple[str, int, int]]
) -> Iterator[Item]:
    for name, start, size in tars:
        label = imagenet.label_of(name.removesuffix(".tar"), f"{name} in {path}")
        for image, *place in _members(file, start, start + size):
            yield Item(image, label, str(path), *place)


def _folder(folder: pathlib.Path) -> list[Item]:
    """The images of folders of classes, or of one folder with validation images as in the tar."""
    name = os.path.basename
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder)):
        labeled = [
            (path, imagenet.label_of(wnid, str(folder / wnid)))
            for wnid, paths in sources.list_classes(folder).items()
            for path in paths
        ]
    else:
        paths = [entry.path for entry in os.scandir(folder) if sources.is_image(entry.name)]
        labeled = [(path, imagenet.validation_label(name(path), path)) for path in paths]
    return [Item(name(path), label, path, 0, os.path.getsize(path)) for path, label in labeled]


def _tfds(folder: pathlib.Path) -> Input:
    """Both splits of a copy that TFDS, or this program, has written to `folder`."""
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
