"""Hugging Face data sets on disk, as Parquet files, read with pyarrow alone.

Parquet is compressed by row groups, so that an image is read together with the others of its group.
The groups read last are kept in memory, and an index of the groups gives random access to records.
"""

import collections
import concurrent.futures
import json
import pathlib
import threading
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from effnet_jax.data import shards
from effnet_jax.data.shards import ShardSource
from effnet_jax.data.sources import Record
from effnet_jax.errors import UserError, check_packages

HELD = 2 * 2**30  # The most bytes of row groups that a process keeps.
# For splits larger than HELD:
LARGEST = 64 * 2**20  # The most bytes in a row group.
MANY = 16  # The number of images in a row group above which a warning states the cost.
REMEDY = "docs/data.md shows how to write the files again with smaller row groups"


class _Groups:
    """The images of row groups. Those read last are kept, up to `HELD` bytes in total."""

    def __init__(self):
        self._lock, self._held = threading.Lock(), collections.OrderedDict()

    def get(self, path: str, group: int, column: str) -> Any:
        """The images of a row group, a pyarrow ChunkedArray of bytes. Only one thread reads it."""
        key = path, group, column
        with self._lock:
            future, is_new = self._held.get(key), key not in self._held
            future = self._held[key] = future or concurrent.futures.Future()
            self._held.move_to_end(key)
        if not is_new:
            return future.result()
        try:
            future.set_result(_read(*key))
        except BaseException as error:
            future.set_exception(error)
            with self._lock:
                self._held.pop(key, None)
            raise
        with self._lock:
            done = [k for k, each in self._held.items() if each.done() and not each.exception()]
            total = sum(self._held[k].result().nbytes for k in done)
            for each in done[:-1]:
                if total <= HELD:
                    break
                total -= self._held.pop(each).result().nbytes
        return future.result()


_GROUPS = _Groups()  # One for the process, because sources are pickled for worker processes.


def _read(path: str, group: int, column: str) -> Any:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        images = file.read_row_group(group, [column], use_threads=False).column(0)
    return pc.struct_field(images, "bytes") if column.endswith(".bytes") else images


class _File(NamedTuple):
    """The contents of a file's footer, and its labels."""

    rows: list[int]  # The number of rows in each row group.
    sizes: list[int]  # The uncompressed bytes of the images in each row group.
    column: str  # The column of the images: "image", or "image.bytes" of a struct.
    labels: np.ndarray
    names: list[str] | None  # The names of the classes.
    kind: str  # The kind of the labels, for messages.


def _image_column(schema: Any, name: str, path: pathlib.Path) -> str:
    """The column with the bytes of the images; raises UserError if it has another type."""
    import pyarrow as pa

    def is_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    kind = schema.field(name).type
    if is_bytes(kind):
        return name
    if pa.types.is_struct(kind) and "bytes" in kind.names and is_bytes(kind.field("bytes").type):
        return f"{name}.bytes"
    raise UserError(
        f"column {name!r} of {path} is {kind}; images must be encoded bytes, or a struct of bytes "
        "and path (config.data.image)"
    )


def _label_kind(schema: Any, name: str, path: pathlib.Path) -> tuple[Any, str]:
    """The type that labels are read as, and its name; raises UserError for an unknown type."""
    import pyarrow as pa

    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind):
        return pa.int64(), "integers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_string(), "text"
    raise UserError(
        f"column {name!r} of {path} is {kind}; labels must be integers or text (config.data.label)"
    )


def _open(path: pathlib.Path, data: ConfigDict) -> _File:
    """The index of a file; raises UserError if it can't be read, or if its columns don't fit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, footer = file.schema_arrow, file.metadata
            keys = [k for k in ("image", "label") if schema.get_field_index(data[k]) < 0]
            if keys:
                missing = " and ".join(f"config.data.{key}={data[key]!r}" for key in keys)
                raise UserError(
                    f"{path} has the columns {', '.join(schema.names)}, and no column {missing}"
                )
            column = _image_column(schema, data.image, path)
            wanted, kind = _label_kind(schema, data.label, path)
            labels = file.read([data.label]).column(0).cast(wanted)
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        feature = (info.get("features") or {}).get(data.label, {})
        names = feature.get("names") if isinstance(feature, dict) else None
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise shards.unreadable(path, error) from None
    if labels.null_count:
        row = next(row for row, valid in enumerate(labels.is_valid().to_pylist()) if not valid)
        raise UserError(
            f"{labels.null_count:,} of {len(labels):,} rows of {path} have no label in the column "
            f"{data.label!r}; the first is row {row}. Remove them, or choose another column "
            "(config.data.label)"
        )
    kind += " with names of classes" if names else ""
    dtype = np.int64 if wanted == pa.int64() else object
    values = np.array(labels.to_pylist(), dtype)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    leaves = groups and [groups[0].column(n).path_in_schema for n in range(footer.num_columns)]
    chunks = [group.column(leaves.index(column)) for group in groups]
    _check_images(path, chunks, column)
    rows, sizes = [g.num_rows for g in groups], [c.total_uncompressed_size for c in chunks]
    return _File(rows, sizes, column, values, names, kind)


def _check_images(path: pathlib.Path, chunks: list[Any], column: str) -> None:
    """Raises UserError for rows without an image, whose number is in the footer."""
    first = 0
    for number, chunk in enumerate(chunks):
        found = chunk.statistics
        if found and found.has_null_count and found.null_count:
            valid = _read(str(path), number, column).is_valid().to_pylist()
            raise UserError(
                f"row {first + valid.index(False)} of {path} has no image in column {column!r}, "
                f"and {found.null_count - 1} more in its row group have none; remove these rows. "
                "If they have only paths, let datasets embed the image files in the data set"
            )
        first += chunk.num_values


class ParquetSource(ShardSource):
    """A split of a data set in Parquet files; see `open_split`."""

    def __init__(self, opened: list[_File], *arguments: Any):
        super().__init__(*arguments)
        self._groups = [
            (path, number, file.column)
            for path, file in zip(self._paths, opened, strict=True)
            for number in range(len(file.rows))
        ]
        self._group_ends = np.cumsum([rows for file in opened for rows in file.rows])
        self._bytes = sum(size for file in opened for size in file.sizes)

    def __getitem__(self, index: int) -> Record:
        number = int(self._records[index])
        group = int(np.searchsorted(self._group_ends, number, "right"))
        first = int(self._group_ends[group - 1]) if group else 0
        image = _GROUPS.get(*self._groups[group])[number - first].as_py()
        if not image:
            raise ValueError("its image is empty")
        return {"image": image, "label": self.label(index)}

    def describe(self, index: int) -> str:
        file, row = self.place(index)
        return f"row {row} of {self._paths[file]}"

    def warnings(self) -> list[str]:
        lines, rows = super().warnings(), len(self._labels) / len(self._groups)
        if self._bytes > HELD and rows > MANY:
            size = self._bytes / len(self._groups) / 1e6
            lines.append(
                f"warning: to read one image, all {rows:.0f} of its row group are read, {size:.1f} "
                f"MB on average, unless the group is in the {HELD / 2**30:.0f} GiB read last; "
                f"{REMEDY}"
            )
        return lines


def open_split(data: ConfigDict, split: str) -> ParquetSource:
    """Opens a split of the data set in the folder `data.data_dir`; see `shards.find_files`.

    `data.image` and `data.label` are columns. Labels are text, or integers that have names in the
    metadata that datasets writes, or that are below `data.label_count`. Raises UserError for files
    and columns that are missing or don't fit, before any image is read.
    """
    check_packages("config.data.source='parquet'", "pyarrow")
    paths = shards.find_files(data, split, ".parquet")
    opened = [_open(path, data) for path in paths]
    for path, file in zip(paths, opened, strict=True):
        if (file.kind, file.names) != (opened[0].kind, opened[0].names):
            raise UserError(
                f"labels of several kinds: {file.kind} in {path}, and {opened[0].kind} in "
                f"{paths[0]}{' (other names)' * (file.kind == opened[0].kind)}; use one kind"
            )
    sizes = [size for file in opened for size in file.sizes]
    if sum(sizes) > HELD and max(sizes) > LARGEST:
        raise UserError(
            f"a row group of split {split!r} in {data.data_dir} has {max(sizes) / 1e6:,.0f} MB of "
            f"images, which are all read to get one of them; the limit is {LARGEST / 1e6:.0f} MB. "
            f"{REMEDY}"
        )
    values, counts = np.concatenate([f.labels for f in opened]), [len(f.labels) for f in opened]
    ends = np.cumsum(counts)

    def describe(number: int) -> str:
        file = int(np.searchsorted(ends, number, "right"))
        return f"row {number - ends[file] + counts[file]} of {paths[file]}"

    if not len(values):
        raise UserError(f"split {split!r} in {data.data_dir} has no rows")
    classes, labels = shards.number_labels(values, opened[0].names, data.label_count, describe)
    return ParquetSource(opened, classes, labels, counts, paths, split)
