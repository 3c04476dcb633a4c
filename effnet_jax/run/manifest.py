"""What the files of a folder were when it was whole: names, sizes and checksums, in manifest.json.

The checksum is CRC-32, which tells a flipped or missing byte, and not somebody who means harm.
"""

import json
import os
import pathlib
import zlib
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.run import files

NAME = "manifest.json"
FORMAT = 1
PIECE = 1 << 22  # Bytes read at a time.


def write(folder: pathlib.Path, **facts: Any) -> None:
    """Brings a folder's files to the disk, reads them back from there, and writes the manifest.

    Args:
      folder: of the files.
      **facts: what else the manifest is to say.

    Raises:
      OSError: a file can't be read back, or the manifest can't be written.
    """
    for path in (folder.parent, folder, *folder.rglob("*")):
        _sync(path)
    described = {name: _describe(folder / name) for name in _names(folder)}
    content = {"format": FORMAT, **facts, "files": described}
    files.write_atomically(folder / NAME, _text(content))
    _sync(folder / NAME)


def exists(folder: pathlib.Path) -> bool:
    return (folder / NAME).is_file()


def find_damage(folder: pathlib.Path) -> str | None:
    """What differs from the manifest, by file; None where nothing does.

    Raises:
      UserError: a later release of this program wrote the manifest.
    """
    try:
        text = (folder / NAME).read_text()
        saved = json.loads(text)
        content = saved["content"]
        if text != _text(content):
            return f"{NAME} is damaged"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{NAME} is damaged: {error}"
    if content["format"] > FORMAT:
        raise UserError(
            f"{folder / NAME} is of format {content['format']}, and this release knows {FORMAT}; "
            "use the release that wrote it, or another --workdir"
        )
    saved, found = content["files"], set(_names(folder))
    if missing := sorted(saved.keys() - found):
        return f"{missing[0]} is missing"
    if extra := sorted(found - saved.keys()):
        return f"{extra[0]} was not saved with it"
    for name, was in saved.items():
        try:
            now = _describe(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if now["bytes"] != was["bytes"]:
            return f"{name} has {now['bytes']} bytes, and {was['bytes']} were saved"
        if now != was:
            return f"{name} has other bytes than were saved (CRC-32)"
    return None


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, indent=1)
    return json.dumps({"checksum": zlib.crc32(body.encode()), "content": content}, indent=1) + "\n"


def _names(folder: pathlib.Path) -> list[str]:
    """Of all files but the manifest, and hidden ones: network file systems leave some behind."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not path.name.startswith("."))
    return sorted(name for name in names if name != NAME)


def _describe(path: pathlib.Path) -> dict[str, int]:
    checksum = size = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
    return {"bytes": size, "crc32": checksum}


def _sync(path: pathlib.Path) -> None:
    """To the disk, and out of memory: what is read next is what the disk has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise") and path.is_file():  # Not on macOS.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
