"""Finished runs from results files, and their mean and spread over seeds.

A results file is a CSV with one row for each finished run, as sweeps write it. Runs that differ
only in their seed make one `Point`. Accuracies are fractions.
"""

import collections
import csv
import dataclasses
import itertools
import operator
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from effnet_jax.errors import UserError, near

EVALUATION = "val/ema"  # The default; its accuracies are in the column val/ema/top1.
SETTINGS = ("base", "width", "depth", "resolution", "parameters", "multiply_adds", "epochs")
SETTINGS += ("batch_size",)  # Runs of one point share these, and differ only in their seed.
LATENCY = ("model", "resolution", "batch", "latency_ms", "latency_ms_min", "latency_ms_max")


def bare_name(sweep: str) -> str:
    """The name of a sweep without arguments and seeds: "methods" for "seeds:3,methods:2,4"."""
    name = re.sub(r"^(seeds:[^,]*,)+", "", sweep).partition(":")[0]
    return pathlib.PurePath(name).stem


class Run(NamedTuple):
    """One row: the columns that a report needs, and scores by name ("val/ema/top1")."""

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
    train_minutes: float
    jax: str
    device: str
    commit: str
    time: str
    scores: dict[str, float]

    @property
    def kind(self) -> str:
        return bare_name(self.sweep)


def whole(text: str) -> int:
    """An int, also from "2000.0"."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


COLUMNS = {name: kind for name, kind in Run.__annotations__.items() if name != "scores"}
PARSERS = {str: str, int: whole, float: float}
PARSERS[float | None] = lambda text: float(text) if text else None


class Point(NamedTuple):
    """The runs of one network, which differ only in their seed.

    Attributes:
      data: the data set, with the name of the evaluation unless that is "val".
      evaluation: whose accuracy `top1` is, say "val/ema".
    """

    series: str
    label: str
    data: str
    evaluation: str
    parameters: int
    multiply_adds: int
    runs: tuple[Run, ...]
    top1: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one run, whose spread is unknown."""
        return statistics.stdev(self.top1) if self.n > 1 else None


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that a report is made from.

    Attributes:
      latency: rows of the latency benchmark, as text.
      evaluation: whose accuracy counts, as NAME/WEIGHTS.
      data: the only data set to show; None shows all.
      repeated: number of rows left out because a newer one has the same seed and settings.
    """

    runs: tuple[Run, ...] = ()
    latency: tuple[dict[str, str], ...] = ()
    files: tuple[pathlib.Path, ...] = ()
    evaluation: str = EVALUATION
    data: str | None = None
    repeated: int = 0

    def points(self, what: str, *kinds: str) -> list[Point]:
        """The points of some kinds of sweep (`bare_name`), in the order of the files.

        Raises:
          UserError: they have several data sets, or runs of one point differ by more than seed.
            It names `what` needs the points, say "figure 8".
        """
        runs = [r for r in self.runs if r.kind in kinds and self.data in (None, r.data)]
        sets = collections.Counter(run.data for run in runs)
        if len(sets) > 1:
            listed = ", ".join(f"{name} ({count} runs)" for name, count in sets.items())
            raise UserError(
                f"{what} would mix results of different data sets: {listed}. Choose one with "
                "--data=NAME, or name only its files with --results"
            )
        groups = collections.defaultdict(list)
        for run in runs:
            groups[run.kind, run.series, run.label].append(run)
        return [self._point(what, group) for group in groups.values()]

    def _point(self, what: str, runs: list[Run]) -> Point:
        first = runs[0]
        where = f"{what}: runs of {first.kind!r}, {first.series!r}, {first.label!r}"
        for key in SETTINGS:
            values = list(dict.fromkeys(getattr(run, key) for run in runs))
            if len(values) > 1:
                raise UserError(
                    f"{where} differ by more than their seed: {key} {values[0]} and {values[1]}. "
                    "Name only the files that belong together with --results"
                )
        top1, count = f"{self.evaluation}/top1", f"{self.evaluation}/count"
        if not all({top1, count} <= run.scores.keys() for run in runs):
            known = {key.rpartition("/")[0] for key in first.scores}
            others = ", ".join(sorted(known - {self.evaluation})) or "none"
            raise UserError(f"{where} lack {top1} or {count}; there is --evaluation={others}")
        name = self.evaluation.partition("/")[0]
        data = first.data if name == "val" else f"{first.data}, evaluation {name}"
        costs = (first.parameters, first.multiply_adds)
        runs = tuple(sorted(runs, key=lambda run: run.seed))
        scores = tuple(run.scores[top1] for run in runs)
        return Point(first.series, first.label, data, self.evaluation, *costs, runs, scores)

    def transfer(self, what: str, name: str) -> list[Point]:
        """The points of "phi" on every split of a data set, which are not mixed."""
        sets = dict.fromkeys(r.data for r in self.runs if r.data.partition("/")[0] == name)
        alone = (dataclasses.replace(self, data=data) for data in sets)
        return [point for results in alone for point in results.points(what, "phi")]


def describe(points: Sequence[Point]) -> str:
    """How the runs were made, in words; nothing for no points."""
    if not points:
        return ""

    def span(values: Sequence[float], digits: str = "g") -> str:
        return " to ".join(f"{value:{digits}}" for value in sorted({min(values), max(values)}))

    first, runs = points[0], [run for point in points for run in point.runs]
    kind = "averaged (EMA)" if first.evaluation.endswith("/ema") else "raw"
    images = span([run.scores[f"{first.evaluation}/count"] for run in runs], ",")
    epochs, batch = span([run.epochs for run in runs]), span([run.batch_size for run in runs])
    made = f"Top-1 of the {kind} weights on {first.data} ({images} images)"
    made += f", after {epochs} epochs at batch {batch}."
    if max(point.n for point in points) == 1:
        return f"{made} One run a point (n = 1), so that the spread is not known."
    bars = "means, bars of one sample standard deviation, a dot for each seed."
    return f"{made} {span([point.n for point in points])} seeds a point: {bars}"


def find_files(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, bool]:
    """Every CSV, once, with whether it was named itself rather than found in a folder."""
    found: dict[pathlib.Path, tuple[pathlib.Path, bool]] = {}
    for path in sorted(paths, key=pathlib.Path.is_dir):  # Named files first.
        if not path.exists():
            raise UserError(f"no file or folder {path}; is --results right?")
        for file in sorted(path.rglob("*.csv")) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), (file, file == path))
    return dict(found.values())


def parse(row: dict[str, str], place: str) -> Run:
    """A row as a run; `place` is its file and line, for messages."""
    cells = {name: (text or "").strip() for name, text in row.items() if name}
    scores = [name for name in cells if name.count("/") == 2 and cells[name]]
    values = {}
    for name in (*COLUMNS, *scores):
        kind = COLUMNS.get(name, int if name.endswith("/count") else float)
        try:
            values[name] = PARSERS[kind](cells[name])
        except ValueError:
            raise UserError(f"{place}: {name} is {cells[name]!r}, no number") from None
        if name.endswith("/top1") and not 0 <= values[name] <= 1:
            raise UserError(f"{place}: {name} is {values[name]}; accuracies are fractions, 0 to 1")
    scores = {name: values.pop(name) for name in scores}
    return Run(**values, scores=scores)


def read_file(path: pathlib.Path) -> tuple[Sequence[str], list[tuple[dict[str, str], str]]]:
    """The columns of a CSV, and its rows with their place for messages."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [(row, f"{path}, line {reader.line_num}") for row in reader]
            return reader.fieldnames or (), rows
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"can't read {path}: {error}") from None


def read(
    paths: Sequence[pathlib.Path], evaluation: str = EVALUATION, data: str | None = None
) -> Results:
    """The results under `paths`.

    A file with other columns is ignored in a folder, and an error if it was named itself. Of
    several runs with the same seed and settings, which are no independent measurements, the newest
    counts.

    Raises:
      UserError: a missing or unreadable file, a named file with other columns, an impossible value,
        or a `data` that no run has.
    """
    parsed, latency, files = [], [], []
    for path, named in find_files(paths).items():
        columns, rows = read_file(path)
        missing = [name for name in COLUMNS if name not in columns]
        if not any(name.endswith("/top1") for name in columns):
            missing.append(f"{evaluation}/top1")
        if not missing:
            parsed += itertools.starmap(parse, rows)
        elif set(LATENCY) <= set(columns):
            latency += [row for row, _ in rows]
        elif named:
            raise UserError(
                f"{path} is no table of results of a sweep: it has no column {missing[0]!r}"
            )
        else:
            continue
        files.append(path)
    settings = operator.attrgetter("kind", "series", "label", "data", "seed", *SETTINGS)
    newest = {settings(run): run for run in sorted(parsed, key=operator.attrgetter("time"))}
    runs = tuple(newest[key] for key in dict.fromkeys(map(settings, parsed)))
    sets = {run.data for run in runs}
    if data is not None and data not in sets:
        raise UserError(f"no results have --data={data}; there are: {near(data, sets) or 'none'}")
    repeated = len(parsed) - len(runs)
    return Results(runs, tuple(latency), tuple(files), evaluation, data, repeated)
