"""Reads and writes the CSV files in results/."""

import contextlib
import csv
import datetime
import fcntl
import io
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.run import buckets, environment, files


class NotWritten(UserError):
    """Rows could not be written to a results file; `result` is the measurement, to be printed."""

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


def describe_machine() -> dict[str, Any]:
    """Returns `environment.describe_run` as the flat columns at the end of a row."""
    run = environment.describe_run()
    columns = ("jax", "jaxlib", "device", "devices", "cpus", "python", "commit", "time")
    return {key: (run | run["versions"])[key] for key in columns}


def read(path: pathlib.Path) -> tuple[list[str], list[tuple[dict[str, str], str]]]:
    """Returns the columns of a CSV, and its rows, each with its file and line for messages.

    Also accepts the forms that spreadsheets write: semicolons or tabs instead of commas, a
    byte-order mark, and empty cells and lines at the end; and a file to which others were appended
    with their headers. Raises UserError if the file can't be read, a quote isn't closed, a column
    occurs twice, or a row has more cells than there are columns.
    """
    try:
        data = files.read_bytes(path)
    except OSError as error:
        reason = buckets.with_remedy(error) if buckets.is_bucket(path) else error
        raise UserError(f"can't read {path}: {reason}") from None
    return _parse(data, path)


def _parse(data: bytes, path: pathlib.Path) -> tuple[list[str], list[tuple[dict[str, str], str]]]:
    """Parses the content of the file `path`; returns the same as `read`."""
    try:
        file = io.StringIO(data.decode("utf-8-sig"), newline="")
        delimiter = max(",;\t", key=file.readline().count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        parsed = [(row, f"{path}, line {reader.line_num}") for row in reader]
    except UnicodeError:
        raise UserError(
            f"can't read {path}: it is not UTF-8 text; save it as UTF-8, or use the original file"
        ) from None
    except csv.Error as error:
        raise UserError(f"can't read {path}: {error}; is a quotation mark missing?") from None
    if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]!r} twice")
    rows = []
    for row, place in parsed:
        if any(row.pop(None, ())):
            raise UserError(f"{place} has more cells than the file has columns")
        cells = {name.strip(): (text or "").strip() for name, text in row.items()}
        if any(cells.values()) and list(cells.values()) != columns:
            rows.append((cells, place))
    return columns, rows


def number(
    cells: dict[str, str], name: str, place: str, zero: bool = False, whole: bool = False
) -> float | int:
    """Converts a cell to a finite number above 0, or also 0 if `zero` is True.

    A `whole` number may be written as "2000.0", but not as a spreadsheet rounds it (1.94E+06).
    Raises UserError, which names `place`.
    """
    text = cells[name]
    try:
        value = int(text.removesuffix(".0")) if whole else float(text)
    except ValueError:
        kind = "not a whole number" if whole else "not a number"
        raise UserError(f"{place}: {name} is {text!r}, {kind}") from None
    if not math.isfinite(value):
        raise UserError(f"{place}: {name} is {value}, which is not finite")
    if value < 0 or not (value or zero):
        raise UserError(
            f"{place}: {name} is {text}, but must be {'0 or more' if zero else 'above 0'}"
        )
    return value


def fraction(cells: dict[str, str], name: str, place: str) -> float:
    """Converts a cell to an accuracy; raises UserError, which names `place`, if it is above 1."""
    value = number(cells, name, place, zero=True)
    if value > 1:
        raise UserError(f"{place}: {name} is {value}; accuracies are fractions, 0 to 1")
    return value


def moment(text: str, place: str) -> datetime.datetime:
    """Parses a row's time, in UTC if it has no zone; raises UserError, which names `place`."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{place}: time is {text!r}, not like 2026-11-22T10:00:00+00:00. If a spreadsheet "
            "changed the file, use the original, or run the sweep again to write a new one"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def encode(rows: Iterable[Iterable[Any]]) -> bytes:
    """Encodes rows of cells, the first with the column names, as the bytes of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def check_append(path: pathlib.Path, columns: Iterable[str]) -> None:
    """Raises UserError if rows with these columns can't be added to a results file."""

    columns, found = list(columns), []

    def check(before: bytes) -> bytes:
        _check_header(before, path, columns)
        found.append(before)
        return before

    with _writing(path):
        if buckets.is_bucket(path):
            generation = buckets.update(path, check)
            if not found[-1]:
                buckets.Folder(path.parent).delete([path.name], generation)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            new = not path.exists()
            with open(path, "ab+") as file:  # Creates an empty file if there is none.
                file.seek(0)
                check(file.read())
            if new:
                path.unlink()


def _check_header(before: bytes, path: pathlib.Path, columns: list[str]) -> None:
    """Raises UserError if a file has other columns; `before` is its content."""
    if not before:
        return
    found = [name for name in _parse(before, path)[0] if name]  # Also rejects an unclosed quote.
    header = next(csv.reader(io.StringIO(before.decode(), newline="")))
    if header == columns:
        return
    if found == columns:
        text = f"{path} has these columns, but in the form that a spreadsheet writes"
    else:
        differ = ", ".join(sorted({*header} ^ {*columns})[:3]) or "in another order"
        text = f"{path} has other columns than these rows ({differ})"
    raise UserError(f"{text}; choose another --csv")


def append_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Appends rows to a results file, local or in a bucket; a new file gets a header."""

    def added(before: bytes) -> str:
        _check_header(before, path, list(rows[0]))
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        if not before:
            writer.writeheader()
        elif not before.endswith(b"\n"):
            text.write("\n")
        writer.writerows(rows)
        return text.getvalue()

    with _writing(path, f"; rows: {rows}"):
        _append(path, added)


def _append(path: pathlib.Path, added: Callable[[bytes], str]) -> None:
    """Appends the text that `added` returns for the file's content; raises OSError."""
    if buckets.is_bucket(path):
        buckets.update(path, lambda before: before + added(before).encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        before = path.read_bytes() if path.exists() else b""
        files.append_whole(path, added(before))


def merge_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Adds runs to a sweep's results file, or replaces those with the same name and time.

    Raises UserError, and does not change the file, if it has rows of another kind.
    """
    with _writing(path):
        if buckets.is_bucket(path):
            buckets.update(path, lambda before: _merged(before, path, rows).encode())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            before = path.read_bytes() if path.is_file() else b""
            files.write_atomically(path, _merged(before, path, rows))


def _merged(before: bytes, path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    """Returns the content of a sweep's results file, which was `before`, with `rows` added."""
    runs = {(row["name"], moment(row["time"], row["name"])) for row in rows}
    columns, old = _parse(before, path)
    if columns and not {"name", "time"} <= set(columns):
        raise UserError(f"{path} is not a results file of a sweep; choose another --csv")
    kept = [r for r, place in old if (r["name"], moment(r["time"], place)) not in runs]
    every, text = kept + rows, io.StringIO()
    header = dict.fromkeys(key for row in [*rows, *kept] for key in row)
    writer = csv.DictWriter(text, header, lineterminator="\n")
    if every:
        writer.writeheader()
    writer.writerows(every)
    return text.getvalue()


@contextlib.contextmanager
def _writing(path: pathlib.Path, more: str = "") -> Iterator[None]:
    """Converts an OSError to a UserError that names --csv."""
    try:
        yield
    except OSError as error:
        reason = buckets.with_remedy(error) if buckets.is_bucket(path) else error.strerror
        raise UserError(f"can't write to --csv={path}: {reason}{more}") from None


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Any:
    """Locks a folder, so that no other effnet_jax program writes to its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
