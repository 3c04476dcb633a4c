"""Files that people and other programs read: written whole or not at all."""

import csv
import json
import os
import pathlib
from typing import Any

from effnet_jax.errors import UserError


def read_classes(workdir: str | pathlib.Path) -> tuple[str, ...]:
    """Names of the classes that a workdir was trained on, by label."""
    path = pathlib.Path(workdir) / "classes.json"
    try:
        return tuple(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"can't read the names of the classes from {path}: {error}") from None


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, none where it is missing; a line cut short by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_atomically(path: pathlib.Path, text: str) -> None:
    """So that a crash leaves the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def append_whole(path: pathlib.Path, text: str) -> None:
    """Appends all of a text or, where that raises OSError, nothing of it."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            data = text.encode()
            while data:
                data = data[file.write(data) :]
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: pathlib.Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def append_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a results file, which is begun with a header where it doesn't exist."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", newline="") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
            if header not in (None, list(rows[0])):
                raise UserError(f"{path} has other columns than these rows; choose another --csv")
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if header is None:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"can't write to --csv={path}: {error.strerror}; rows: {rows}") from None
