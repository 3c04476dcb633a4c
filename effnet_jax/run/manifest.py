"""A folder's manifest.json: facts about the folder, and sizes and CRC-32 checksums of its files.

The folder is local or in a bucket.
"""

import json
import os
import pathlib
import zlib
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.run import buckets, files

NAME = "manifest.json"
FORMAT = 1


def write(folder: pathlib.Path, **facts: Any) -> None:
    """Syncs a folder's files to disk, reads them back, and writes the manifest with `facts`."""
    is_local = not buckets.is_bucket(folder)
    for path in (folder.parent, folder, *folder.rglob("*")) if is_local else ():
        _sync(path)
    described = {name: _describe(folder / name) for name in _names(folder)}
    files.write_atomically(folder / NAME, _text({"format": FORMAT, **facts, "files": described}))
    if is_local:
        _sync(folder / NAME)


def exists(folder: pathlib.Path) -> bool:
    """Whether the folder has a manifest, which means that it was verified."""
    if buckets.is_bucket(folder):
        return buckets.Folder(folder).has(NAME)
    return (folder / NAME).is_file()


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The facts of the manifest, and "files"; raises OSError or ValueError if it is damaged."""
    data = files.read_bytes(folder / NAME)
    content = json.loads(data)["content"]
    if data.decode() != _text(content):
        raise ValueError("checksum")
    return content


def find_damage(folder: pathlib.Path) -> str | None:
    """The first difference from the manifest, by file; None if there is none."""
    try:
        content = read(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{NAME} is damaged: {error}"
    if content["format"] > FORMAT:
        raise UserError(
            f"{folder / NAME} is of format {content['format']}, and this release knows {FORMAT}; "
            "use the release that wrote it, or another --workdir"
        )
    saved, present = content["files"], _names(folder)
    for name in sorted({*saved, *present}):
        if name not in present:
            return f"{name} is missing"
        if name not in saved:
            return f"{name} was not saved with it"
        try:
            if (now := _describe(folder / name)) != saved[name]:
                return f"{name} has {now}, and was saved with {saved[name]}"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, indent=1)
    return json.dumps({"checksum": zlib.crc32(body.encode()), "content": content}, indent=1) + "\n"


def _names(folder: pathlib.Path) -> list[str]:
    """All files except the manifest and hidden files, which network file systems leave behind."""
    if buckets.is_bucket(folder):
        names = buckets.Folder(folder).names(deep=True)
    else:
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return [name for name in names if name != NAME and not os.path.basename(name).startswith(".")]


def _describe(path: pathlib.Path) -> str:
    checksum = 0
    if buckets.is_bucket(path):
        data = buckets.read(path)
        return f"{len(data)} bytes of CRC-32 {zlib.crc32(data):08x}"
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
        return f"{file.tell()} bytes of CRC-32 {checksum:08x}"


def _sync(path: pathlib.Path) -> None:
    """Syncs a file to disk and drops it from memory, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise") and path.is_file():  # Not on macOS.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
