"""WebDataset tars: the names of a sample's files differ only after the first dot.

A tar is indexed once, without reading its images, and the index is kept in the user's cache folder.
Images are then read by their offset, in any order, and nothing is unpacked.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import re
import tarfile
import tempfile
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from effnet_jax.data import shards
from effnet_jax.data.folders import is_hidden, is_image
from effnet_jax.data.shards import ShardSource
from effnet_jax.data.sources import Record
from effnet_jax.errors import UserError
from effnet_jax.run import files

VERSION = 1  # The version of the index; an index of another version is not used.
Members = dict[str, tarfile.TarInfo]  # The files of a sample, by the text after the first dot.


def _group(tar: tarfile.TarFile, path: pathlib.Path) -> dict[str, Members]:
    found = {}
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        if not member.isreg() or member.issparse() or is_hidden(name):
            continue
        stem, _, ending = name.partition(".")
        sample = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if ending.lower() in sample:
            raise UserError(f"{path} has {member.name} twice; write the tar again")
        sample[ending.lower()] = member
    return found


def _samples(path: pathlib.Path) -> dict[str, Members]:
    """The files of each sample of a tar, by sample name; raises UserError for a damaged tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            found = _group(tar, path)
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise shards.unreadable(path, error) from None
    with open(path, "rb") as file:  # tarfile treats a damaged header as the end of the tar.
        file.seek(end)
        if file.read(512) != bytes(512):
            raise shards.unreadable(path, f"it is damaged or truncated at byte {end:,}")
    return found


def _image(members: Members, wanted: str) -> list[str]:
    """The endings of a sample's files that may be its image."""
    if wanted in members or wanted != "image":
        return [wanted] if wanted in members else []
    return [ending for ending in members if is_image(f"image.{ending}")]


def _label(file: Any, members: Members, key: str, where: str) -> tuple[str, int | str] | None:
    """The kind of a sample's label, for messages, and its value; None if there is none."""

    def text_of(member: tarfile.TarInfo) -> str:
        return os.pread(file.fileno(), member.size, member.offset_data).decode()

    try:
        if key in ("label", "cls") and "cls" in members:
            text = text_of(members["cls"]).strip()
            is_number = bool(re.fullmatch(r"-?\d+", text))
            return "an integer in .cls" if is_number else "text in .cls", (
                int(text) if is_number else text
            )
        if "json" not in members:
            return None
        value = json.loads(text_of(members["json"]))
    except ValueError as error:
        raise UserError(f"can't read the label of {where}: {error}") from None
    if not isinstance(value, dict) or key not in value:
        keys = ", ".join(value) if isinstance(value, dict) else "no keys"
        raise UserError(f"the .json of {where} has {keys}, but not {key!r} (config.data.label)")
    if type(value[key]) not in (int, str):
        raise UserError(
            f"{key!r} in the .json of {where} is {value[key]!r}; labels must be integers or text "
            "(config.data.label)"
        )
    kind = "an integer" if isinstance(value[key], int) else "text"
    return f"{kind} in .json", value[key]


def _make_index(path: pathlib.Path, image: str, label: str) -> dict[str, Any]:
    """The index of a tar; raises UserError for samples that lack their image or label."""
    index = {key: [] for key in ("names", "offsets", "sizes", "labels")}
    kinds, left_out, lacking = {}, collections.Counter(), collections.defaultdict(list)
    samples = _samples(path)
    with open(path, "rb") as file:
        for name, members in samples.items():
            where, images = f"{name} in {path}", _image(members, image)
            if len(images) > 1:
                raise UserError(
                    f"{where} has several images, .{', .'.join(images)}; choose one, as in "
                    f"--config.data.image={images[0]}"
                )
            found = _label(file, members, label, where)
            if not images or found is None:
                lacking["label" if images else "image"].append((name, members))
                continue
            kinds.setdefault(found[0], name)
            member, used = members[images[0]], {images[0], found[0].rpartition(".")[2]}
            values = name, member.offset_data, member.size, found[1]
            for key, value in zip(("names", "offsets", "sizes", "labels"), values, strict=True):
                index[key].append(value)
            left_out.update(f".{ending}" for ending in members if ending not in used)
    for part, missing in lacking.items():
        name, members = missing[0]
        needed = f".cls, or .json with {label!r}" if part == "label" else ".jpg, .png and so on"
        key = f"config.data.{part}={label if part == 'label' else image!r}"
        raise UserError(
            f"{len(missing):,} of {len(samples):,} samples in {path} have no {part} ({needed}; "
            f"{key}); the first, {name}, has .{', .'.join(members)}. Write the tar again without "
            "them, or with all of their files"
        )
    if len(kinds) > 1:
        listed = ", ".join(f"{name} has {kind}" for kind, name in kinds.items())
        raise UserError(f"labels of several kinds in {path}: {listed}; use one kind")
    return {**index, "kind": next(iter(kinds), None), "left_out": left_out}


def _index(path: pathlib.Path, image: str, label: str) -> dict[str, Any]:
    """The index of a tar: read from the cache folder, or made and stored in the folder."""
    state = os.stat(path)
    facts = VERSION, os.path.realpath(path), state.st_size, state.st_mtime_ns, image, label
    folder = files.cache_folder("tars")
    place = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(place.read_text())
    index = _make_index(path, image, label)
    with contextlib.suppress(OSError):  # If it can't be stored, the next start makes it again.
        folder.mkdir(parents=True, exist_ok=True)
        # A file of its own, because several processes may store the index at once.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump(index, file)
        os.replace(file.name, place)
    return index


class TarSource(ShardSource):
    """A split of a data set in WebDataset tars; see `open_split`."""

    def __init__(self, indices: list[dict[str, Any]], *arguments: Any):
        super().__init__(*arguments)
        self._names = [name for index in indices for name in index["names"]]
        self._offsets, self._sizes = (
            np.concatenate([np.array(index[key], np.int64) for index in indices])
            for key in ("offsets", "sizes")
        )

    def __getitem__(self, index: int) -> Record:
        number = self._records[index]
        size, offset = int(self._sizes[number]), int(self._offsets[number])
        with open(self._paths[self.place(index)[0]], "rb", buffering=0) as file:
            image = os.pread(file.fileno(), size, offset)
        return {"image": image, "label": self.label(index)}

    def describe(self, index: int) -> str:
        return f"{self._names[self._records[index]]} in {self._paths[self.place(index)[0]]}"


def open_split(data: ConfigDict, split: str) -> TarSource:
    """Opens a split of the tars in the folder `data.data_dir`; see `shards.find_files`.

    The image of a sample is its file with an image's ending, or with the ending `data.image`. Its
    label is its .cls, or `data.label` in its .json: text, or an integer below `data.label_count`.
    Raises UserError for files and samples that are missing or don't fit, before reading images.
    """
    paths = shards.find_files(data, split, ".tar")
    indices = [_index(path, data.image, data.label) for path in paths]
    kinds = {}
    for path, index in zip(paths, indices, strict=True):
        if index["kind"]:  # It is None for an empty tar.
            kinds.setdefault(index["kind"], path)
    if len(kinds) > 1:
        listed = ", ".join(f"{path} has {kind}" for kind, path in kinds.items())
        raise UserError(f"labels of several kinds: {listed}; use one kind")
    values = np.array([label for index in indices for label in index["labels"]])
    if not len(values):
        raise UserError(f"split {split!r} in {data.data_dir} has no samples")
    names = [f"{name} in {p}" for p, i in zip(paths, indices, strict=True) for name in i["names"]]
    classes, labels = shards.number_labels(values, None, data.label_count, names.__getitem__)
    left_out = collections.Counter()
    for index in indices:
        left_out.update(index["left_out"])
    counts = [len(index["names"]) for index in indices]
    return TarSource(indices, classes, labels, counts, paths, split, left_out)
