"""Splits in several files: finds the files, numbers the labels, and selects a part of a split."""

import collections
import os
import pathlib
import re
import types
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from effnet_jax.data.folders import is_hidden, list_endings
from effnet_jax.data.sources import Source, alike, count_by_class, uneven
from effnet_jax.errors import UserError
from effnet_jax.run import files

# "train-00000-of-00003", and the digest that old versions of datasets appended.
NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")
BRACES = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")


class ShardSource(Source):
    """The records of a split in several files, or a part of them.

    Args:
      classes: the names by label.
      labels: the labels of all records in the files, int64 [n].
      counts: the number of records in each file.
      paths: the files.
      split: the name of the split, with its part in brackets, as in "train[:90%]".
      left_out: counts the contents of the files that are not read, by suffix.
    """

    by_content = True

    def __init__(
        self,
        classes: Sequence[str],
        labels: np.ndarray,
        counts: Sequence[int],
        paths: Sequence[pathlib.Path],
        split: str,
        left_out: collections.Counter | None = None,
    ):
        super().__init__(tuple(classes), _part(split, len(labels)))
        self._labels, self._ends = labels, np.cumsum(counts)
        self._paths = [str(path) for path in paths]
        self._split, self._left_out = split, left_out or collections.Counter()

    def place(self, index: int) -> tuple[int, int]:
        """The index of a record's file, and the index of the record in this file."""
        number = int(self._records[index])
        file = int(np.searchsorted(self._ends, number, "right"))
        return file, number - (int(self._ends[file - 1]) if file else 0)

    def label(self, index: int) -> int:
        return int(self._labels[self._records[index]])

    def count_shared(self, other: "ShardSource") -> int:
        """The number of records that are also in `other`, at the same place in the same file."""
        own, theirs = self._numbers_by_file(), other._numbers_by_file()
        return sum(len(np.intersect1d(own[path], theirs[path])) for path in own.keys() & theirs)

    def _numbers_by_file(self) -> dict[str, np.ndarray]:
        starts = np.concatenate([[0], self._ends[:-1]])
        return {
            os.path.realpath(path): self._records[(self._records >= start) & (self._records < end)]
            - start
            for path, start, end in zip(self._paths, starts, self._ends, strict=True)
        }

    def _counts(self) -> np.ndarray:
        return np.bincount(self._labels[self._records], minlength=len(self.classes))

    def summary(self) -> str:
        file = "file" if len(self._paths) == 1 else f"{len(self._paths):,} files"
        return (
            f"split {self._split!r} in {file} in {os.path.dirname(self._paths[0])}: {len(self):,} "
            f"of {len(self._labels):,} images, {self._list_classes()}"
            f"{count_by_class(self.classes, self._counts())}{list_endings(self._left_out)}"
        )

    def warnings(self) -> list[str]:
        return alike(self.classes, "give them one name") + uneven(self.classes, self._counts())


def _part(split: str, count: int) -> np.ndarray:
    """The indices of a split's records, of `count`: all, or those in brackets, as in TFDS."""
    _, bracket, part = split.partition("[")
    if not bracket:
        return np.arange(count)
    from tensorflow_datasets.core import ReadInstruction  # Slow to import.

    try:
        whole = {"records": types.SimpleNamespace(num_examples=count)}
        (found,) = ReadInstruction.from_spec(f"records[{part}").to_absolute(whole)
    except ValueError as error:
        text = str(error).partition("\n")[0]
        raise UserError(f"split {split!r} of {count:,} records: {text}") from None
    return np.arange(count)[found.from_ : found.to]


def find_files(data: ConfigDict, split: str, ending: str) -> list[pathlib.Path]:
    """Finds the files of a split in the folder `data.data_dir`, sorted.

    A split is a name, whose files are SPLIT/*, SPLIT-* or SPLIT, in the folder or in its data/; or
    a pattern of files, as in "train-{00000..00003}.tar"; or ".", the files directly in the folder.
    Raises UserError if there are none, or if some are missing.
    """
    if not data.data_dir:
        raise UserError(f"no folder with {ending} files given; add --config.data.data_dir=DIR")
    root = pathlib.Path(data.data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root} (config.data.data_dir)")
    name = split.partition("[")[0]
    if name.endswith(ending):
        found = _matching(root, name)
    else:
        places = [place for place in (root, root / "data") if place.is_dir()]
        groups = [group for place in places for group in _named(place, name, ending)]
        if len(groups) > 1:
            raise UserError(
                f"{root} has several sets of files for the split {name!r}: "
                f"{' and '.join(str(group[0]) for group in groups)}; move one away, or use a "
                f"pattern, as in config.data.train_split='{name}-*{ending}'"
            )
        found = groups[0] if groups else []
    if not found:
        raise UserError(_none_found(root, name, ending))
    _check_numbers(found)
    return found


def _matching(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """The files of a pattern with * and {FIRST..LAST}; raises UserError for missing numbers."""
    patterns = [pattern]
    while match := BRACES.fullmatch(patterns[0]):
        first, last, width = int(match[2]), int(match[3]), len(match[2])
        numbers = [str(number).zfill(width) for number in range(first, last + 1)]
        parts = [BRACES.fullmatch(each) for each in patterns]
        patterns = [f"{part[1]}{number}{part[4]}" for part in parts for number in numbers]
    by_pattern = {each: sorted(root.glob(each)) for each in patterns}
    if missing := [each for each, found in by_pattern.items() if not found]:
        listed = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        raise UserError(
            f"{root} lacks {len(missing)} of the {len(patterns)} files {pattern}: {listed}; copy "
            "them, or change the pattern to the existing numbers"
        )
    return [path for found in by_pattern.values() for path in found]


def _named(place: pathlib.Path, name: str, ending: str) -> list[list[pathlib.Path]]:
    """The sets of files in a folder that belong to a split: those in SPLIT/, and SPLIT-*."""

    def listed(folder: pathlib.Path, names: str) -> list[pathlib.Path]:
        paths = folder.glob(f"*{ending}") if folder.is_dir() else ()
        return sorted(p for p in paths if re.fullmatch(names, p.name) and not is_hidden(p.name))

    groups = [listed(place / name, ".*")]
    if name != ".":
        *folders, last = name.split("/")
        names = rf"{re.escape(last)}([-_.]?\d.*)?{re.escape(ending)}"
        groups.append(listed(place.joinpath(*folders), names))
    return [group for group in groups if group]


def _none_found(root: pathlib.Path, name: str, ending: str) -> str:
    """The message for a split without files."""
    paths = [path for path in root.glob("**/*") if path.is_file() and not is_hidden(path.name)]
    names = [str(path.relative_to(root)) for path in paths if path.name.endswith(ending)]
    text = f"{root} has no {ending} files of the split {name!r}"
    if names:
        return (
            f"{text}; it has {', '.join(sorted(names)[:5])}{', ...' * (len(names) > 5)} "
            "(config.data.train_split and config.data.eval_split: a name such as train, a pattern "
            f"such as 'part-*{ending}', or '.' for the files directly in the folder)"
        )
    endings = collections.Counter("".join(path.suffixes[-2:]) for path in paths)
    if any(path.suffix == ".arrow" for path in paths):
        return (
            f"{text}, but has Arrow files of save_to_disk; convert them to Parquet: "
            f"datasets.load_from_disk({str(root)!r})[SPLIT].to_parquet('SPLIT.parquet')"
        )
    if packed := [key for key in endings if key.endswith((".tar.gz", ".tgz"))]:
        return f"{text}, but has {packed[0]} files, which have no random access; gunzip them"
    return f"{text}{list_endings(endings)}"


def _check_numbers(paths: list[pathlib.Path]) -> None:
    """Raises UserError if names such as train-00000-of-00003 aren't complete sets of files."""
    sets = collections.defaultdict(list)
    for path in paths:
        if match := NUMBERED.fullmatch(path.name):
            sets[match[1]].append((int(match[2]), int(match[3]), path))
    for first, members in sets.items():
        folder, totals = members[0][2].parent, sorted({total for _, total, _ in members})
        if len(totals) > 1:
            text = " and ".join(f"-of-{total}" for total in totals)
            raise UserError(f"{folder} has files {first}* of several sets, {text}; keep one set")
        numbers = collections.Counter(number for number, _, _ in members)
        if twice := [number for number, count in numbers.items() if count > 1]:
            same = [str(path) for number, _, path in members if number == twice[0]]
            raise UserError(f"two files have the same number: {', '.join(same)}; keep one")
        if missing := sorted(set(range(totals[0])) - numbers.keys()):
            listed = ", ".join(map(str, missing[:5])) + ", ..." * (len(missing) > 5)
            raise UserError(
                f"{folder} lacks {len(missing)} of the {totals[0]} files {first}*: numbers "
                f"{listed}; copy or download them again"
            )


def unreadable(path: pathlib.Path, why: object) -> UserError:
    """The error for a file that is damaged or in the wrong format."""
    with open(path, "rb") as file:
        left = files.left_by_download(file.read(64))
    why = f"it is {left}" if left else f"{str(why).partition(chr(10))[0]}; copy it again"
    return UserError(f"can't read {path}: {why}")


def number_labels(
    values: np.ndarray,
    names: Sequence[str] | None,
    count: int | None,
    describe: Callable[[int], str],
) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and the label of each record, int64 [n].

    `values` are texts, each of which is a class, or integers, which are positions in `names` or
    else below `count`. Raises UserError for integers with neither, and for integers out of range.
    """
    if values.dtype.kind in "OU":
        classes, labels = np.unique(values.astype(str), return_inverse=True)
        return tuple(classes.tolist()), labels.reshape(-1)
    if names is None and count is None:
        raise UserError(
            f"the label of {describe(0)} is an integer without names of classes; give the number "
            "of classes, as in --config.data.label_count=10 for labels from 0 to 9"
        )
    classes = tuple(map(str, range(count) if names is None else names))
    if len(wrong := np.flatnonzero((values < 0) | (values >= len(classes)))):
        first = int(wrong[0])
        raise UserError(
            f"{len(wrong):,} of {len(values):,} labels are outside 0 to {len(classes) - 1}: "
            f"{describe(first)} has {values[first]}. If all labels are -1, the split has no labels "
            "and can't be used"
        )
    return classes, values.astype(np.int64)
