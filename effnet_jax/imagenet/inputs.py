"""Where ImageNet lies before it is prepared: the official tars, a folder, or a copy by TFDS.

Each is read into one list of items a split, (file name, label, path, offset, length), so that all
that follows doesn't know which it was. Tars and TFRecord files are indexed by seeking from header
to header, nothing is extracted.
"""

import dataclasses
import mmap
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from effnet_jax.errors import UserError
from effnet_jax.imagenet.dataset import (
    ARCHIVES,
    NAME,
    TRAIN,
    VALIDATION,
    Item,
    class_names,
    label_of,
    validation_label,
)

BLOCK = 512  # Bytes: tars are made of blocks.
EXTENSIONS = (".jpeg", ".jpg", ".png")


@dataclasses.dataclass(frozen=True)
class Input:
    """Both splits, unordered; `kind` and `archives`, the tars to compare checksums of."""

    kind: str
    splits: dict[str, list[Item]]
    archives: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)


class BrokenTar(UserError):
    """A tar that ends early, or whose headers are damaged; `split` says whose."""

    def __init__(self, message: str, split: str = "", path: pathlib.Path | None = None):
        super().__init__(message)
        self.split, self.path = split, path


def open_input(root: pathlib.Path) -> Input:
    """Finds out what `root` holds, and indexes it; raises UserError where it is nothing known."""
    if not root.is_dir():
        raise UserError(f"no directory {root} (--from)")
    tars = {split: root / archive.name for split, archive in ARCHIVES.items()}
    if any(path.exists() for path in tars.values()):
        if missing := [path.name for path in tars.values() if not path.is_file()]:
            raise UserError(f"{root} has one of the two tars, and {missing[0]} is missing")
        readers = {TRAIN: _train_tar, VALIDATION: _validation_tar}
        return Input("tars", {split: readers[split](path) for split, path in tars.items()}, tars)
    if (root / "train").is_dir() and (root / "val").is_dir():
        splits = {TRAIN: _train_folder(root / "train"), VALIDATION: _val_folder(root / "val")}
        return Input("a folder", splits)
    places = [root, *root.glob("*/"), *root.glob(f"{NAME}/*/")]
    if found := [place for place in places if (place / "dataset_info.json").is_file()]:
        if len(found) > 1:
            raise UserError(f"{root} has several data sets; give one: {' '.join(map(str, found))}")
        return _tfds(found[0])
    raise UserError(
        f"{root} (--from) holds nothing that is known as ImageNet. Looked for: "
        + " and ".join(archive.name for archive in ARCHIVES.values())
        + "; folders train/WNID and val (of images, or of folders WNID); a copy by TFDS, "
        f"dataset_info.json in it, in */ or in {NAME}/*/"
    )


def read_item(item: Item) -> bytes:
    """The encoded image.

    Raises:
      ValueError: the file is shorter than it was.
      UserError: it can't be read.
    """
    try:
        if ".array_record-" in item.path:
            record = _array_record(item.path).read([item.offset])[0]
            start, end = _spans(record, 0, len(record))["image"]
            return record[start:end]
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


def _train_tar(path: pathlib.Path) -> list[Item]:
    items = []
    try:
        with open(path, "rb") as file:
            for tar, start, size in _members(file, 0, path.stat().st_size):
                label = label_of(tar.removesuffix(".tar"), f"{tar} in {path}")
                for name, offset, length in _members(file, start, start + size):
                    items.append(Item(name, label, str(path), offset, length))
    except BrokenTar as error:
        raise BrokenTar(str(error), TRAIN, path) from None
    return items


def _validation_tar(path: pathlib.Path) -> list[Item]:
    try:
        with open(path, "rb") as file:
            return [
                Item(name, validation_label(name, str(path)), str(path), offset, length)
                for name, offset, length in _members(file, 0, path.stat().st_size)
            ]
    except BrokenTar as error:
        raise BrokenTar(str(error), VALIDATION, path) from None


def _images(folder: pathlib.Path) -> Iterator[tuple[str, str, int]]:
    """Name, path and bytes of the image files in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                yield entry.name, entry.path, entry.stat().st_size


def _class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.is_dir() and not path.name.startswith(".")]


def _train_folder(folder: pathlib.Path) -> list[Item]:
    return [
        Item(name, label_of(place.name, str(place)), path, 0, length)
        for place in _class_folders(folder)
        for name, path, length in _images(place)
    ]


def _val_folder(folder: pathlib.Path) -> list[Item]:
    """Folders of classes as in training, or all images side by side as in the tar."""
    if _class_folders(folder):
        return _train_folder(folder)
    return [
        Item(name, validation_label(name, path), path, 0, length)
        for name, path, length in _images(folder)
    ]


def _tfds(folder: pathlib.Path) -> Input:
    """Both splits of a copy that TFDS, or this program, has written to `folder`."""
    import tensorflow_datasets as tfds

    info = tfds.core.read_only_builder.builder_from_directory(folder).info
    readers = {"tfrecord": _tfrecord_items, "array_record": _array_record_items}
    kind = info.file_format.value
    if info.name != NAME or kind not in readers or not {TRAIN, VALIDATION} <= set(info.splits):
        raise UserError(
            f"{folder} holds {info.name} as {kind}, with {', '.join(sorted(info.splits))}; needed "
            f"is {NAME} as {' or '.join(readers)}, with {TRAIN} and {VALIDATION}"
        )
    if tuple(info.features["label"].names) != class_names():
        raise UserError(f"the classes of {folder} are not ImageNet's 1000")
    splits = {}
    for split in (TRAIN, VALIDATION):
        splits[split] = items = []
        described = info.splits[split]
        for path, count in zip(described.filepaths, described.shard_lengths, strict=True):
            if not os.path.isfile(path):
                raise UserError(f"{path} is missing; copy the data set again")
            found = list(readers[kind](str(path)))
            if len(found) != count:
                raise UserError(
                    f"{path} holds {len(found)} records and should hold {count}; copy it again"
                )
            items += found
    return Input(f"a copy in {kind}", splits)


def _tfrecord_items(path: str) -> Iterator[Item]:
    """A record is its length (8 bytes), that length's checksum (4), the record, and its own (4).

    The file is mapped, so only the pages of headers and labels are read. That the image itself is
    whole is seen when it is decoded.
    """
    from tensorboardX.record_writer import masked_crc32c

    position, size = 0, os.path.getsize(path)
    if not size:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while position < size:
            head = data[position : position + 12]
            start, end = position + 12, position + 12 + int.from_bytes(head[:8], "little")
            if len(head) < 12 or masked_crc32c(head[:8]) != int.from_bytes(head[8:], "little"):
                raise UserError(f"{path} is damaged at byte {position:,}; copy it again")
            if end + 4 > size:
                raise UserError(
                    f"{path} ends early, at byte {size:,} of at least {end + 4:,}; copy it again"
                )
            yield _item(path, data, start, end)
            position = end + 4


def _array_record_items(path: str) -> Iterator[Item]:
    """ArrayRecord compresses as it likes, so names and labels are to be had by reading it all."""
    try:
        reader = _array_record(path)
        for index in range(reader.num_records()):
            record = reader.read([index])[0]
            yield _item(path, record, 0, len(record))._replace(offset=index)
    except RuntimeError as error:
        raise UserError(f"{path} is damaged: {error}; copy it again") from None


def _array_record(path: str):
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0")


def _item(path: str, data: bytes | mmap.mmap, start: int, end: int) -> Item:
    try:
        spans = _spans(data, start, end)
        name, (low, high) = spans["file_name"], spans["image"]
        label, _ = _varint(data, spans["label"][0])
        return Item(bytes(data[slice(*name)]).decode(), label, path, low, high - low)
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"{path}: the record at byte {start:,} is no example of {NAME}; copy it again"
        ) from None


def _varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """A number in the protocol buffers' encoding, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the fields of the protocol buffer message in [start, end)."""
    while start < end:
        tag, start = _varint(data, start)
        if tag & 7 == 2:
            length, start = _varint(data, start)
            stop = start + length
        elif tag & 7 == 0:
            stop = _varint(data, start)[1]
        else:
            raise ValueError(f"unexpected wire type {tag & 7}")
        if stop > end:
            raise ValueError("a field ends after its message")
        yield tag >> 3, start, stop
        start = stop


def _spans(data: bytes | mmap.mmap, start: int, end: int) -> dict[str, tuple[int, int]]:
    """Where the single value of each feature of a tf.train.Example lies, by the feature's name.

    TFDS's parser would need the whole record in memory, and the image is most of it.
    """
    spans = {}
    for _, *features in _fields(data, start, end):
        for _, *entry in _fields(data, *features):
            (_, *key), (_, *feature) = sorted(_fields(data, *entry))
            for _, *values in _fields(data, *feature):
                for _, *value in _fields(data, *values):
                    spans[bytes(data[slice(*key)]).decode()] = tuple(value)
    return spans
