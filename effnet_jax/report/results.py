"""Finished runs out of results files, and the mean and spread over seeds.

A results file is a CSV with one row a finished run, as sweeps write it. Runs that differ by seed
alone make one `Point`. Accuracies are fractions.
"""

import csv
import dataclasses
import functools
import pathlib
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from effnet_jax.errors import UserError, near

WEIGHTS = ("ema", "raw")
LATENCY = ("model", "resolution", "batch", "latency_ms", "latency_ms_min", "latency_ms_max")


def bare_name(sweep: str) -> str:
    """What a sweep is, without arguments and seeds: "methods" for "seeds:3,methods:2,4"."""
    name, _, argument = sweep.partition(":")
    while name == "seeds":
        name, _, argument = argument.partition(",")[2].partition(":")
    return pathlib.PurePath(name).stem


@dataclasses.dataclass(frozen=True)
class Run:
    """One row: the columns that tables and figures need, by their names in the file."""

    sweep: str
    series: str
    label: str
    data: str
    seed: int
    base: str
    alpha: float | None
    beta: float | None
    gamma: float | None
    width: float
    depth: float
    resolution: int
    parameters: int
    multiply_adds: int
    epochs: float
    batch_size: int
    raw_top1: float | None
    ema_top1: float | None
    count: int
    train_minutes: float
    jax: str
    device: str
    commit: str
    time: str

    @property
    def kind(self) -> str:
        return bare_name(self.sweep)

    @property
    def settings(self) -> dict[str, object]:
        """What must be equal for two runs to differ by seed alone."""
        keys = ("base", "width", "depth", "resolution", "parameters", "multiply_adds")
        keys += ("epochs", "batch_size")
        return {key: getattr(self, key) for key in keys}


def whole(text: str) -> int:
    """An int, also out of "2000.0"."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


COLUMNS = tuple(field.name for field in dataclasses.fields(Run))
PARSERS = {
    str: str,
    int: whole,
    float: float,
    float | None: lambda text: float(text) if text else None,
}


@dataclasses.dataclass(frozen=True)
class Point:
    """The runs of one network, which differ by seed alone.

    Attributes:
      runs: by seed.
      weights: whose accuracy counts, "ema" or "raw".
    """

    runs: tuple[Run, ...]
    weights: str

    @property
    def series(self) -> str:
        return self.runs[0].series

    @property
    def label(self) -> str:
        return self.runs[0].label

    @property
    def data(self) -> str:
        return self.runs[0].data

    @property
    def multiply_adds(self) -> int:
        return self.runs[0].multiply_adds

    @property
    def parameters(self) -> int:
        return self.runs[0].parameters

    @property
    def n(self) -> int:
        return len(self.runs)

    @functools.cached_property
    def top1(self) -> tuple[float, ...]:
        """The accuracy of each run."""
        return tuple(getattr(run, f"{self.weights}_top1") for run in self.runs)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one run, whose spread is not known."""
        return statistics.stdev(self.top1) if self.n > 1 else None

    @property
    def minutes(self) -> float:
        """Mean training time."""
        return statistics.fmean(run.train_minutes for run in self.runs)


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a report is made from.

    Attributes:
      runs: of every data set.
      latency: rows of the latency benchmark, as text.
      files: those that were read.
      weights: whose accuracy counts, "ema" or "raw".
      data: the only data set to show, where one was asked for.
      repeated: runs left out because a newer one has the same seed and settings.
    """

    runs: tuple[Run, ...] = ()
    latency: tuple[dict[str, str], ...] = ()
    files: tuple[pathlib.Path, ...] = ()
    weights: str = "ema"
    data: str | None = None
    repeated: int = 0

    def points(self, what: str, *kinds: str) -> list[Point]:
        """The points of some kinds of sweep, in the order of the files.

        Args:
          what: that needs them, for messages: "figure 8".
          kinds: bare names of sweeps.

        Raises:
          UserError: they are of several data sets, or pool runs that differ by more than seed.
        """
        runs = [r for r in self.runs if r.kind in kinds and self.data in (None, r.data)]
        sets = Counter(run.data for run in runs)
        if len(sets) > 1:
            listed = ", ".join(f"{name} ({count} runs)" for name, count in sets.items())
            raise UserError(
                f"{what} would mix results of different data sets: {listed}. Choose one with "
                "--data=NAME, or name only its files with --results"
            )
        return group(runs, self.weights, what)


def group(runs: Iterable[Run], weights: str, what: str) -> list[Point]:
    """Runs as points; see `Results.points`."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.kind, run.series, run.label, run.data), []).append(run)
    for (kind, series, label, _), found in groups.items():
        first = found[0].settings
        for other in (run.settings for run in found[1:]):
            if other != first:
                unlike = ", ".join(
                    f"{k} {first[k]} and {other[k]}" for k in first if first[k] != other[k]
                )
                raise UserError(
                    f"{what}: runs of {kind!r}, {series!r}, {label!r} differ by more than their "
                    f"seed: {unlike}. Name only the files that belong together with --results"
                )
        if any(getattr(run, f"{weights}_top1") is None for run in found):
            other = next(name for name in WEIGHTS if name != weights)
            raise UserError(
                f"{what}: runs of {kind!r}, {series!r}, {label!r} have no {weights}_top1; "
                f"--weights={other} takes the other weights"
            )
    return [
        Point(tuple(sorted(found, key=lambda run: run.seed)), weights) for found in groups.values()
    ]


def find_files(paths: Sequence[pathlib.Path]) -> list[tuple[pathlib.Path, bool]]:
    """Every CSV, once, with whether it was named itself rather than found in a folder."""
    found: dict[pathlib.Path, tuple[pathlib.Path, bool]] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"no file or folder {path}; is --results right?")
        inside = sorted(path.rglob("*.csv")) if path.is_dir() else [path]
        for file in inside:
            named = not path.is_dir() or found.get(file.resolve(), (file, False))[1]
            found[file.resolve()] = (file, named)
    return list(found.values())


def parse(row: dict[str, str], place: str) -> Run:
    """A row as a run; `place` is its file and line, for messages."""
    values = {}
    for field in dataclasses.fields(Run):
        try:
            values[field.name] = PARSERS[field.type]((row[field.name] or "").strip())
        except ValueError:
            raise UserError(f"{place}: {field.name} is {row[field.name]!r}, no number") from None
    for name in WEIGHTS:
        value = values[f"{name}_top1"]
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{place}: {name}_top1 is {value}; accuracies are fractions, 0 to 1")
    return Run(**values)


def read(paths: Sequence[pathlib.Path], weights: str = "ema", data: str | None = None) -> Results:
    """Everything under `paths`.

    A file of other columns is passed over in a folder, and an error where it was named itself. Of
    runs with the same seed and settings, which are no independent measurements, the newest counts.

    Raises:
      UserError: nothing there, a file of other columns, a value that can't be, or no such `data`.
    """
    runs: dict[tuple, Run] = {}
    latency, files, total = [], [], 0
    for path, named in find_files(paths):
        try:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                columns = reader.fieldnames or ()
                rows = [(reader.line_num, row) for row in reader]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"can't read {path}: {error}") from None
        missing = [name for name in COLUMNS if name not in columns]
        if not missing:
            for line, row in rows:
                run = parse(row, f"{path}, line {line}")
                key = (run.kind, run.series, run.label, run.data, run.seed)
                key = (*key, *run.settings.values())
                if key not in runs or run.time >= runs[key].time:
                    runs[key] = run
            total += len(rows)
        elif set(LATENCY) <= set(columns):
            latency += [row for _, row in rows]
        elif named:
            raise UserError(
                f"{path} is no table of results of a sweep: it has no column {missing[0]!r}"
            )
        else:
            continue
        files.append(path)
    sets = {run.data for run in runs.values()}
    if data is not None and data not in sets:
        raise UserError(
            f"no results have --data={data}; "
            + (f"there are: {near(data, sets)}" if sets else "there are none at all")
        )
    repeated = total - len(runs)
    return Results(tuple(runs.values()), tuple(latency), tuple(files), weights, data, repeated)
