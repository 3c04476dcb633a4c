"""A folder's manifest.json: facts about it, and the sizes and CRC-32s of its files when whole."""

import json
import os
import pathlib
import zlib
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.run import files

NAME = "manifest.json"
FORMAT = 1


def write(folder: pathlib.Path, **facts: Any) -> None:
    """Syncs a folder's files to the disk, reads them back, and writes the manifest with `facts`."""
    for path in (folder.parent, folder, *folder.rglob("*")):
        _sync(path)
    described = {name: _describe(folder / name) for name in _names(folder)}
    files.write_atomically(folder / NAME, _text({"format": FORMAT, **facts, "files": described}))
    _sync(folder / NAME)


def exists(folder: pathlib.Path) -> bool:
    """Whether the folder was verified: it has a manifest."""
    return (folder / NAME).is_file()


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The facts of the manifest, and "files"; raises OSError or ValueError if it is damaged."""
    text = (folder / NAME).read_text()
    content = json.loads(text)["content"]
    if text != _text(content):
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
    """All files but the manifest and hidden ones, which network file systems leave behind."""
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return [name for path in paths if (name := path.relative_to(folder).as_posix()) != NAME]


def _describe(path: pathlib.Path) -> str:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
        return f"{file.tell()} bytes of CRC-32 {checksum:08x}"


def _sync(path: pathlib.Path) -> None:
    """Writes a file to the disk and drops it from memory, so that a read gets what the disk has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise") and path.is_file():  # Not on macOS.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
