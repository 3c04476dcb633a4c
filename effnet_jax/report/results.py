"""Finished runs read from results files, with means and deviations over seeds.

A results file is a CSV with one row for each finished run, as sweeps write it. Runs that differ
only in their seed form one `Point`. Accuracies are fractions.
"""

import collections
import dataclasses
import datetime
import math
import operator
import pathlib
import re
import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from effnet_jax import config as config_lib
from effnet_jax import csv_rows
from effnet_jax.errors import UserError, near
from effnet_jax.report import paper
from effnet_jax.run import buckets, files

EVALUATION = "val/ema"  # By default, accuracies are read from the column val/ema/top1.
# The runs of one point have equal values of these. The last two are missing in older files.
SETTINGS = ("base", "width", "depth", "resolution", "parameters", "multiply_adds", "epochs")
SETTINGS += ("steps", "batch_size", "recipe", "trained_on")
# The metrics by which the data sets of transfer learning are compared, with their names.
METRICS = {"top1": "Top-1", "mean_per_class": "Mean accuracy per class"}
EVAL = "eval"  # The name of the sweep for rows written by eval.py.
# The sweeps that have their own sections in the report: those of the paper, and fine-tuning.
PAPER = ("phi", "width", "depth", "resolution", "width_at", "methods", "grid", "table3", "table7")
PAPER += ("fine_tuning",)
EVALUATED = {"data", "identity", "parameters", "top1", "step", "weights"}  # Columns of eval.py.
LATENCY = ("model", "resolution", "batch", "latency_ms", "latency_ms_min", "latency_ms_max")


def bare_name(sweep: str) -> str:
    """The name of a sweep without arguments and wrappers: "methods" for "seeds:3,methods:2,4".

    For a sweep of config keys, the sorted keys: "ema.decay epochs" for "epochs=1,2 ema.decay=0.9
    seed=0,1". A user's file named as one of the PAPER sweeps keeps its suffix: "width.py".
    """
    name = re.sub(r"^(seeds:[^,]*,|tuned:.*?\.csv,)+", "", sweep)
    if re.match(r"[\w.]+=", name):
        keys = re.findall(r"(?:^|\s)([\w.]+)=", name)
        return " ".join(sorted(key for key in keys if key != "seed")) or "seed"
    path = pathlib.PurePath(name.partition(":")[0])
    is_own = path.suffix == ".py" and path.parent.name != "sweeps"
    return path.name if is_own and path.stem in (EVAL, *PAPER) else path.stem


class Run(NamedTuple):
    """One row: the columns that a report needs, and scores by name ("val/ema/top1").

    Attributes:
      epochs, steps: the length of the run; one of them is None.
      swept: pairs of a config key that the sweep changes and its value.
      recipe: a digest of the rest of the config.
      trained_on, identity: those of the two splits. Empty, like the two above, in older files.
      curve: pairs of epoch and top-1, one for each evaluation.
    """

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
    epochs: float | None
    batch_size: int
    train_minutes: float
    jax: str
    device: str
    commit: str
    time: datetime.datetime
    scores: dict[str, float]
    swept: tuple[tuple[str, str], ...] = ()
    recipe: str = ""
    trained_on: str = ""
    identity: str = ""
    steps: int | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def kind(self) -> str:
        return bare_name(self.sweep)

    @property
    def place(self) -> tuple:
        """What the runs of one point have in common: swept values, or else series and label.

        With swept values, names are ignored, since a file of a sweep may give all runs one name.
        """
        names = () if self.swept and self.kind not in PAPER else (self.series, self.label)
        return self.kind, names, self.swept


def as_float(text: str) -> float:
    """The number in a text, or NaN if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def value(text: str) -> str:
    """The value of a config key in a normal form, so that "0.1" and "1e-1" are equal."""
    if text.upper() in ("TRUE", "FALSE"):  # Spreadsheets change the case.
        return text.capitalize()
    return text if math.isnan(as_float(text)) else f"{as_float(text):.12g}"


OTHERS = ("scores", *Run._field_defaults)  # Fields that are not required columns.
COLUMNS = {name: kind for name, kind in Run.__annotations__.items() if name not in OTHERS}
ZERO = ("seed", "epochs", "steps", "train_minutes")  # Numbers that may be 0; others are positive.
FRACTIONS = ("top1", "top5", "mean_per_class")


class Point(NamedTuple):
    """The runs of one network, which differ only in their seed.

    Attributes:
      data: the data set, with the name of the evaluation unless that is "val".
      evaluation: evaluation and weights that `top1` is of, for example "val/ema".
      metric: the metric in `top1`, a key of METRICS.
    """

    series: str
    label: str
    data: str
    evaluation: str
    parameters: int
    multiply_adds: int
    runs: tuple[Run, ...]
    top1: tuple[float, ...]
    metric: str = "top1"

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Pairs of epoch and mean top-1; empty if the runs were evaluated at different epochs."""
        epochs = {tuple(epoch for epoch, _ in run.curve) for run in self.runs}
        if len(epochs) > 1:
            return []
        heights = zip(*([top1 for _, top1 in run.curve] for run in self.runs), strict=True)
        return list(zip(*epochs, map(statistics.fmean, heights), strict=True))

    @property
    def sd(self) -> float | None:
        """The sample standard deviation; None for a single run."""
        return statistics.stdev(self.top1) if self.n > 1 else None


def multiple(point: Point) -> str:
    """The requested cost, from the point's label: "4x" for "4x (w=1.9)"."""
    return point.label.partition(" ")[0]


class Compared(NamedTuple):
    """What figure 7 shows: the options --networks, --images, --method and --layer of the report.

    Attributes:
      networks: sources of weights for `weights.load`, from which their names are derived.
      images: paths; if empty, images with known classes are taken from the first network's run.
      method, layer: arguments of `explain.maps`.
    """

    networks: tuple[str, ...]
    images: tuple[str, ...] = ()
    method: str = "cam"
    layer: str | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything from which a report is made.

    Attributes:
      latency: rows of the latency benchmark; all values are text except the time.
      evaluation: evaluation and weights whose accuracies are shown, as NAME/WEIGHTS.
      data: the only data set to show; None shows all.
      repeated: the number of rows left out because a newer one has the same seed and settings.
      skipped: files that were left out, each with the reason.
      compared: what figure 7 shows; None for no figure 7.
    """

    runs: tuple[Run, ...] = ()
    latency: tuple[dict[str, Any], ...] = ()
    files: tuple[pathlib.Path, ...] = ()
    evaluation: str = EVALUATION
    data: str | None = None
    repeated: int = 0
    skipped: tuple[str, ...] = ()
    compared: Compared | None = None

    def points(self, what: str, *kinds: str, metric: str = "top1") -> list[Point]:
        """The points of sweeps of some kinds (`Run.kind`), in the order of the files.

        A point uses top-1 if one of its runs lacks `metric`.

        Raises:
          UserError: the runs are on several data sets, or those of one point differ in more than
            the seed. The message begins with `what`, for example "figure 8".
        """
        runs = [run for run in self.runs if run.kind in kinds]
        sets = collections.Counter(run.data for run in runs)
        if len(sets) > 1:
            listed = ", ".join(f"{name} ({count} runs)" for name, count in sets.items())
            raise UserError(
                f"{what} would mix results of different data sets: {listed}. Choose one with "
                "--data=NAME, or pass only its files to --results"
            )
        groups = collections.defaultdict(list)
        for run in runs:
            groups[run.place].append(run)
        return [self._point(what, group, metric) for group in groups.values()]

    def _point(self, what: str, runs: list[Run], metric: str) -> Point:
        first = runs[0]
        where = f"{what}: runs of {first.kind!r}, {first.series!r}, {first.label!r}"
        for key in SETTINGS:
            values = list(dict.fromkeys(getattr(run, key) for run in runs))
            if len(values) > 1:
                one, other = ("unknown" if each in ("", None) else each for each in values[:2])
                raise UserError(
                    f"{where} differ by more than their seed: {key} {one} and {other}. "
                    "Pass only files that belong together to --results"
                )
        top1, count = f"{self.evaluation}/top1", f"{self.evaluation}/count"
        if not all({top1, count} <= run.scores.keys() for run in runs):
            known = {key.rpartition("/")[0] for key in first.scores}
            others = ", ".join(sorted(known - {self.evaluation})) or "none"
            raise UserError(f"{where} lack {top1} or {count}; they have --evaluation={others}")
        name = self.evaluation.partition("/")[0]
        data = first.data if name == "val" else f"{first.data}, evaluation {name}"
        costs = (first.parameters, first.multiply_adds)
        runs = tuple(sorted(runs, key=lambda run: run.seed))
        if all(f"{self.evaluation}/{metric}" in run.scores for run in runs):
            top1 = f"{self.evaluation}/{metric}"
        scores, metric = tuple(run.scores[top1] for run in runs), top1.rpartition("/")[2]
        return Point(first.series, first.label, data, self.evaluation, *costs, runs, scores, metric)

    def transfer(self, what: str, chosen: dict[str, str]) -> list[Point]:
        """The points of all sweeps on the test split of `chosen`, a row of paper.transfer().

        Their labels are names of networks.
        """
        place, top1 = f"{chosen['name']}/{chosen['split']}", f"{self.evaluation}/top1"
        runs = [
            run if run.kind == "phi" else run._replace(label=paper.label(*network(run)))
            for run in self.runs
            if run.data.partition(" ")[0] == place and top1 in run.scores
        ]
        return [
            point
            for each in self._split(runs, "kind", "recipe")
            for point in each.points(what, each.runs[0].kind, metric=chosen["metric"])
        ]

    def own(self, what: str) -> dict[str, list[Point]]:
        """The points of each sweep that is not in PAPER, separated by data set and recipe.

        Keys are titles: the keys that the sweep changes, or the name of its file, and the data set.
        """
        runs, sweeps = [run for run in self.runs if run.kind not in (EVAL, *PAPER)], {}
        for each in self._split(runs, "kind", "recipe"):
            first, keys = each.runs[0], each.runs[0].kind.split()
            keys = config_lib.short_names(keys) if len(keys) > 1 else keys
            title = f"{', '.join(keys)} on {first.data}"
            title += f", recipe {first.recipe}" if title in sweeps else ""
            sweeps[title] = each.points(what, first.kind)
        return sweeps

    def _split(self, runs: Sequence[Run], *keys: str) -> list["Results"]:
        """Results for each data set, and within it for each combination of values of `keys`."""
        groups = collections.defaultdict(list)
        for run in runs:
            groups[operator.attrgetter("data", *keys)(run)].append(run)
        return [dataclasses.replace(self, runs=tuple(group)) for group in groups.values()]


class Swept(NamedTuple):
    """What differs between the points of a sweep, and how to draw them over a numeric key.

    Attributes:
      names: a name for each point, in the order of the points.
      key: the key of the x axis; None if no key has only numbers or keys change together.
      lines: pairs of the key's number and the point, ascending, by the values of the other keys.
    """

    names: list[str]
    key: str | None
    lines: dict[str, list[tuple[float, Point]]]


def find_swept(points: Sequence[Point]) -> Swept:
    """Find what differs between a sweep's points."""
    values = [dict(point.runs[0].swept) for point in points]
    keys = dict.fromkeys(chain(*values))
    keys = [key for key in keys if len({each.get(key) for each in values}) > 1]
    short = dict(zip(keys, config_lib.short_names(keys), strict=True))

    def name(each: dict[str, str], without: str | None = None) -> str:
        return ", ".join(f"{short[k]}={each.get(k, '')}" for k in keys if k != without)

    columns = {key: {as_float(each.get(key, "")) for each in values} for key in keys}
    numeric = [key for key in keys if all(map(math.isfinite, columns[key]))]
    key = max(numeric, key=lambda key: len(columns[key]), default=None)
    lines = collections.defaultdict(list)
    for each, point in zip(values, points, strict=True) if key else ():
        lines[name(each, key)].append((as_float(each[key]), point))
    for line in lines.values():
        line.sort(key=operator.itemgetter(0))
    names = [name(each) or p.label for each, p in zip(values, points, strict=True)]
    return Swept(names, None if 2 * len(lines) > len(points) else key, lines)


def describe(points: Sequence[Point]) -> str:
    """A sentence that says how the runs were made; "" for no points."""
    if not points:
        return ""

    def span(values: Sequence[float], digits: str = "g") -> str:
        return " to ".join(f"{value:{digits}}" for value in sorted({min(values), max(values)}))

    first, runs = points[0], [run for point in points for run in point.runs]
    kind = "averaged (EMA)" if first.evaluation.endswith("/ema") else "raw"
    images = span([run.scores[f"{first.evaluation}/count"] for run in runs], ",")
    batch, lengths = span([run.batch_size for run in runs]), []
    for unit in ("epochs", "steps"):
        if values := [each for run in runs if (each := getattr(run, unit)) is not None]:
            lengths.append(f"{span(values, 'g' if unit == 'epochs' else ',')} {unit}")
    made = f"{METRICS[first.metric]} of the {kind} weights on {first.data} ({images} images)"
    made += f", after {' or '.join(lengths)} at batch {batch}."
    if max(point.n for point in points) == 1:
        return f"{made} One run per point (n = 1), so the deviation is unknown."
    bars = "means, bars of one sample standard deviation, a dot for each seed."
    return f"{made} {span([point.n for point in points])} seeds per point: {bars}"


def find_files(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, bool]:
    """Every CSV once, with whether it is one of `paths` rather than found in a folder.

    Hidden files in a folder are ignored: they are copies of an editor or files of the system.
    """
    csvs: dict[pathlib.Path, tuple[pathlib.Path, bool]] = {}
    remote = [path for path in paths if buckets.is_bucket(path)]
    local = [path for path in paths if not buckets.is_bucket(path)]
    for path in sorted(local, key=pathlib.Path.is_dir):  # Named files first.
        if not path.exists():
            raise UserError(f"no file or folder {path}; check the path of the results")
        for file in sorted(path.rglob("*.[cC][sS][vV]")) if path.is_dir() else [path]:
            if not any(part.startswith(".") for part in file.relative_to(path).parts):
                csvs.setdefault(file.resolve(), (file, file == path))
    return dict(csvs.values()) | _find_objects(remote)


def _find_objects(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, bool]:
    """`find_files` for paths in buckets."""
    named = {path: True for path in paths if files.is_file(path)}
    for path in (path for path in paths if path not in named):
        try:
            names = buckets.Folder(path).names(deep=True)
        except OSError as error:
            raise UserError(f"can't read --results={path}: {buckets.with_remedy(error)}") from None
        if not names:
            raise UserError(f"no file or folder {path}; check the path of the results")
        for name in sorted(names):
            if name.lower().endswith(".csv") and not re.search(r"(^|/)\.", name):
                named.setdefault(path / name, False)
    return named


def parse(cells: dict[str, str], place: str, evaluation: str = EVALUATION) -> Run:
    """The run in a row; `place` is the row's file and line, for messages."""
    values = [_parse_cell(cells, name, kind, place) for name, kind in COLUMNS.items()]
    scores = {
        name: _parse_score(cells, name, place)
        for name in cells
        if re.fullmatch(r"[^/ ]+/[^/ ]+/[^/ ]+", name) and cells[name]
    }
    swept = {name: text for name, text in cells.items() if name.startswith("config.") and text}
    for name, text in swept.items():
        if re.fullmatch(r"-?\d+,\d+", text):
            raise UserError(f"{place}: {name} is {text!r}, a number with a comma; use a point")
    swept = tuple(sorted((key.removeprefix("config."), value(text)) for key, text in swept.items()))
    others = ("recipe", "train/identity", f"{evaluation.partition('/')[0]}/identity")
    steps = _parse_cell({"steps": ""} | cells, "steps", int | None, place)
    if cells["epochs"] == "" and steps is None:
        raise UserError(
            f"{place} has neither epochs nor steps; run the sweep's command again, which adds the "
            "steps of its runs"
        )
    course = re.findall(r"(\S+):(\S+)", cells.get(f"{evaluation}/top1 by epoch", ""))
    curve = tuple((as_float(epoch), as_float(top1)) for epoch, top1 in course)
    return Run(*values, scores, swept, *(cells.get(name, "") for name in others), steps, curve)


def _parse_cell(cells: dict[str, str], name: str, kind: Any, place: str) -> Any:
    if kind is str or (cells[name] == "" and kind in (float | None, int | None)):
        return cells[name] if kind is str else None
    if kind is datetime.datetime:
        return csv_rows.moment(cells[name], place)
    return csv_rows.number(cells, name, place, name in ZERO, kind in (int, int | None))


def _parse_score(cells: dict[str, str], name: str, place: str) -> float:
    metric = name.rpartition("/")[2]
    if metric == "count":
        return csv_rows.number(cells, name, place, whole=True)
    if metric in FRACTIONS:
        return csv_rows.fraction(cells, name, place)
    return as_float(cells[name])  # A loss may be infinite.


network = operator.attrgetter("base", "width", "depth", "resolution")


def parse_evaluation(cells: dict[str, str], place: str) -> Run | None:
    """The run in a row of eval.py, with the weights, raw or ema, as its series.

    None if the row is not of a run, or its data set or network is not one of transfer learning.
    """
    sets = {f"{row['name']}/{row['split']}": row for row in paper.transfer().values()}
    if cells["data"] not in sets or not cells["step"]:
        return None
    numbers = ("width", "depth", "resolution", "parameters")
    size = [_parse_cell(cells, key, COLUMNS[key], place) for key in numbers]
    identified = paper.identify(*size, int(sets[cells["data"]]["classes"]))
    if identified is None:
        return None
    row = dict.fromkeys(COLUMNS, "") | {key: cells[key] for key in COLUMNS if key in cells}
    row |= {"sweep": EVAL, "series": cells["weights"], "base": identified[0], "train_minutes": "0"}
    row["multiply_adds"] = str(identified[1].multiply_adds)
    row["steps"] = "" if cells["epochs"] else cells["step"]
    kept = (*METRICS, "count")
    row |= {f"val/{cells['weights']}/{key}": cells[key] for key in kept if key in cells}
    run = parse(row | {"val/identity": cells["identity"]}, place)
    return run._replace(label=paper.label(*network(run)), train_minutes=math.nan)


def parse_latency(cells: dict[str, str], place: str) -> dict[str, Any]:
    """A row of the latency benchmark with checked numbers and parsed time, None if unknown."""
    for name in LATENCY[1:]:
        csv_rows.number(cells, name, place)
    return cells | {"time": csv_rows.moment(cells["time"], place) if cells.get("time") else None}


def name_data(runs: Sequence[Run], evaluation: str = EVALUATION) -> list[Run]:
    """The runs, with part of the identity in `data` if several data sets have the same name.

    Rows of older files have no identity; the number of images distinguishes their data sets.
    """
    sets, counts = (collections.defaultdict(set) for _ in range(2))
    names = []
    for run in runs:
        images = run.scores.get(f"{evaluation}/count")
        names.append((run.identity[-8:], None if run.identity else images))
        sets[run.data].add(names[-1])
        counts[run.data] |= set() if run.identity else {images}
    return [
        run._replace(data=f"{run.data} [{digest or _unknown(images, counts[run.data])}]")
        if len(sets[run.data]) > 1
        else run
        for run, (digest, images) in zip(runs, names, strict=True)
    ]


def _unknown(images: int | None, counts: set[int | None]) -> str:
    return "unknown" if len(counts) == 1 else f"unknown, {images} images"


def read(
    paths: Sequence[pathlib.Path],
    evaluation: str = EVALUATION,
    data: str | None = None,
    sweep: str | None = None,
) -> Results:
    """The results under `paths`, for all data sets or only `data`, all sweeps or only `sweep`.

    A file with other columns is skipped if it was found in a folder. Runs with the same seed and
    settings are not independent measurements, so only the newest is used. `data` may also be the
    part of an identity that `name_data` adds to names.

    Raises:
      UserError: a file is missing or unreadable, a named file has other columns, a value is
        impossible, or no run has `data`.
    """
    parsed, latency, sources, skipped = [], [], [], []
    for path, named in find_files(paths).items():
        columns, rows = csv_rows.read(path)
        if columns and not rows:
            skipped.append(f"{path} (no rows)")
            continue
        missing = [name for name in COLUMNS if name not in columns]
        if not any(name.endswith("/top1") for name in columns):
            missing.append(f"{evaluation}/top1")
        if not missing:
            parsed += (parse(*row, evaluation) for row in rows)
        elif set(LATENCY) <= set(columns):
            latency += (parse_latency(*row) for row in rows)
        elif set(columns) >= EVALUATED:
            evaluated = [run for row in rows if (run := parse_evaluation(*row))]
            parsed += evaluated
            if others := len(rows) - len(evaluated):
                skipped.append(f"{others} of {len(rows)} rows of {path} (not of transfer learning)")
            if not evaluated:
                continue
        elif named:
            raise UserError(
                f"{path} is not a results file of a sweep: it has no column {missing[0]!r}; "
                "choose another file"
            )
        else:
            skipped.append(f"{path} (no column {missing[0]!r})")
            continue
        sources.append(path)
    parsed = name_data([run for run in parsed if sweep in (None, run.sweep)], evaluation)
    if data is not None:
        sets = {run.data for run in parsed}
        chosen = {name for name in sets if data == name or data in re.split(r"[ \[\],]+", name)}
        if not chosen:
            known = near(data, sets) or "none"
            raise UserError(f"no results have --data={data}; the data sets are: {known}")
        parsed = [run for run in parsed if run.data in chosen]
    settings = operator.attrgetter("place", "data", "seed", *SETTINGS)
    newest = {settings(run): run for run in sorted(parsed, key=operator.attrgetter("time"))}
    runs = tuple(newest[key] for key in dict.fromkeys(map(settings, parsed)))
    left_out = len(parsed) - len(runs), tuple(skipped)
    return Results(runs, tuple(latency), tuple(sources), evaluation, data, *left_out)
