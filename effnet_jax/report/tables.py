"""The paper's tables with counted costs and our results, one function for each.

Our numbers are rounded to our disadvantage: accuracies and speed-ups down, deviations and times up.
The CSVs of the figures have them unrounded.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from effnet_jax import models, scaling
from effnet_jax.models import efficientnet, network
from effnet_jax.report import paper
from effnet_jax.report.results import Point, Results, describe, find_swept, multiple

NOT_RUN, NOT_STATED = "not run", "not stated"


class Table(NamedTuple):
    """A table, with its cells as text, and its caption."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str


def down(value: float, digits: int = 2) -> str:
    """A number rounded towards minus infinity, except that float error doesn't lower a digit."""
    size = 10**digits
    return f"{math.floor(value * size + 1e-6) / size:.{digits}f}"


def up(value: float, digits: int = 2) -> str:
    size = 10**digits
    return f"{math.ceil(value * size - 1e-6) / size:.{digits}f}"


def percent(point: Point | None) -> str:
    """The cell of a point: mean top-1, its sample standard deviation and the number of seeds."""
    if point is None:
        return NOT_RUN
    mean, sd, n = accuracy(point)
    return f"{mean}{sd and f' ± {sd}'} (n = {n})"


def accuracy(point: Point) -> tuple[str, str, str]:
    """The cells of a point: mean top-1, its sample standard deviation and the number of seeds."""
    sd = "" if point.sd is None else up(100 * point.sd)
    return down(100 * point.mean), sd, str(point.n)


def minutes(point: Point) -> str:
    """The mean minutes of training per run."""
    return up(sum(run.train_minutes for run in point.runs) / point.n, 1)


def stage_rows(spec: network.Architecture) -> list[tuple[str, int, int, int]]:
    """Operator, input size, channels and layers of each row of Table 1."""
    kernel = f"{spec.stem.kernel}x{spec.stem.kernel}"
    rows = [(f"Conv{kernel}", spec.resolution, spec.stem.filters, 1)]
    size = next(layer.size for layer in spec.layers() if layer.name == "stem/conv")
    for blocks in spec.stages:
        first = blocks[0]
        operator = f"MBConv{first.expanded // first.inputs}, k{first.kernel}x{first.kernel}"
        rows.append((operator, size, first.outputs, len(blocks)))
        size = -(-size // first.stride)
    return [*rows, ("Conv1x1 & Pooling & FC", size, spec.head_filters, 1)]


def table1(_: Results) -> Table:
    """The base network row by row, without measurements."""
    spec = models.base("efficientnet").architecture(scaling.Coefficients(1.0, 1.0, 224))
    rows, differ = [], 0
    for ours, row in zip(stage_rows(spec), paper.read("table1"), strict=True):
        operator, size, *counts = map(str, ours)
        printed = [row["input_resolution_as_printed"], row["channels"], row["layers"]]
        same = [size, *counts] == printed
        same &= operator.startswith(row["operator"].partition("+")[0])
        same &= f"{row['kernel']}x{row['kernel']}" in operator
        differ += not same
        other = f"{row['operator']}, k{row['kernel']}, {', '.join(printed)}"
        cells = (f"{size} x {size}", *counts, "the same" if same else other)
        rows.append((row["stage"], operator, *cells))
    caption = "The operator, input size, channels and layers of every row equal the paper's."
    if differ:
        caption = f"{differ} rows differ from the paper's."
    return Table(("stage", "operator", "resolution", "channels", "layers", "paper"), rows, caption)


def table2(results: Results) -> Table:
    points = results.points("table 2", "phi")
    comparable = [point for point in points if paper.is_imagenet(point.data)]
    ours = {(point.label, point.parameters, point.multiply_adds): point for point in comparable}
    timm = {row["model"]: row["top1"] for row in paper.read("timm")}
    used, rows = [], []
    for row in paper.read("table2"):
        name = row["model"]
        if not name.startswith("EfficientNet"):
            continue
        label = name[-2:].lower()
        cost = paper.counted(*efficientnet.VARIANTS[label][:4])
        if point := ours.get((label, cost.parameters, cost.multiply_adds)):
            used.append(point)
        counts = (f"{cost.parameters:,}", f"{row['params_M']} M")
        counts += (f"{cost.multiply_adds:,}", f"{row['flops_B']} B")
        rows.append((name[-2:], *counts, percent(point), row["top1"], timm[name]))
    caption = describe(used)
    if points and not used:
        caption = f"Our runs of these models are left out: {points[0].data} is not comparable."
    columns = ("model", "parameters", "paper", "multiply-adds", "paper")
    return Table((*columns, "top-1, ours", "paper", "timm"), rows, caption)


BASES = {"MobileNetV1": "mobilenet_v1", "MobileNetV2": "mobilenet_v2", "ResNet-50": "resnet50"}
COMPOUND = (1.4, 1.2, 1.3)  # MobileNetV1's depth, width, resolution; others' are not stated.
SCALED = ("coefficients", "multiply-adds", "paper", "top-1, paper", "top-1, ours")
SCALED += ("multiply-adds of our runs",)


def scaled_cells(base: str, row: dict[str, str], point: Point | None) -> tuple[str, ...]:
    """The cells in the columns SCALED for one of the paper's rows of Table 3 or 7."""
    d, w, r = (
        default if row[key] == NOT_STATED else float(row[key] or 1)
        for key, default in zip("dwr", COMPOUND, strict=True)
    )
    counted = f"{paper.counted(base, w, d, round(224 * r)).multiply_adds / 1e9:.3f} B"
    ours = f"{point.multiply_adds:,}" if point else NOT_RUN
    printed = (f"{row['flops_B']} B", row["top1"])
    return f"d={d:g}, w={w:g}, r={r:g}", counted, *printed, percent(point), ours


def measured(points: Sequence[Point]) -> str:
    """A caption that says how our column was measured and whether the paper's is comparable."""
    if not points:
        return ""
    other = "" if paper.is_imagenet(points[0].data) else " The paper's accuracies are on ImageNet."
    return f"Ours: {describe(points)}{other}"


def table3(results: Results) -> Table:
    points = {(p.series, p.label): p for p in results.points("table 3", "table3")}
    rows = []
    for row in paper.read("table3"):
        base, scale = BASES[row["base_model"]], row["scaling"]
        cells = scaled_cells(base, row, points.get((base, scale)))
        rows.append((row["base_model"], scale, *cells))
    return Table(("base", "scaling", *SCALED), rows, measured([*points.values()]))


def table7(results: Results) -> Table:
    points = {point.series: point for point in results.points("table 7", "table7")}
    rows = []
    for row in paper.read("table7"):
        name = row["model"]
        rows.append((name, *scaled_cells("efficientnet", row, points.get(name))))
    return Table(("model", *SCALED), rows, measured([*points.values()]))


LATENCY_MODELS = {"ResNet-152": "resnet152", "EfficientNet-B1": "b1", "EfficientNet-B7": "b7"}
MACHINE = ("batch", "dtype", "threads", "jax", "jaxlib", "device", "cpus", "python")


def table4(results: Results) -> Table:
    """The newest latency of each model, and the speed-up if both are from the same machine."""
    by_time = sorted(results.latency, key=lambda r: r["time"].timestamp() if r["time"] else 0)
    newest = {row["model"]: row for row in by_time}
    printed = {row["model"]: row for row in paper.read("table4")}
    others = {name: name for name in newest if name not in LATENCY_MODELS.values()}
    names = {name: LATENCY_MODELS.get(name) for name in printed} | others
    rows = []
    for name, model in names.items():
        cells = [NOT_RUN if model else "not implemented", "", ""]
        if ours := newest.get(model):
            mean = float(ours["latency_ms"])
            low, high = (up(float(ours[f"latency_ms_{end}"]), 1) for end in ("min", "max"))
            at = f"{ours['resolution']} px, batch {ours['batch']}, threads: {ours.get('threads')}"
            cells = [f"{up(mean, 1)} ms ({low} to {high})", at, ""]
            slow = newest.get("resnet152")
            if model == "b1" and slow and all(ours.get(k) == slow.get(k) for k in MACHINE):
                cells[2] = f"{down(float(slow['latency_ms']) / mean, 1)}x"
        if row := printed.get(name):
            speedup = row["speedup_of_efficientnet"]
            cells += [f"{1000 * float(row['latency_s']):,.0f} ms", speedup and f"{speedup}x"]
        rows.append((name, *cells, *[""] * (5 - len(cells))))
    columns = ("model", "latency, ours", "at", "speed-up, ours")
    return Table((*columns, "latency, paper", "speed-up, paper"), rows, "")


def table5(results: Results) -> Table:
    sets = paper.transfer()
    points = {name: results.transfer("table 5", chosen) for name, chosen in sets.items()}
    rows, used = [], []
    for row in paper.read("table5"):
        if row["dataset"] not in points:
            continue  # The rows of geometric means.
        label = row["efficientnet"].lower()
        named = [point for point in points[row["dataset"]] if point.label == label]
        used += named
        cells = [row["dataset"], row["comparison"]]
        for who in ("peer", "efficientnet"):
            size = row[f"{who}_params_M"]
            cells += [row[who], row[f"{who}_acc"], f"{size} M" if size else NOT_STATED]
        chosen = sets[row["dataset"]]
        ours = [
            percent(point) + " of top-1" * (point.metric != chosen["metric"]) for point in named
        ]
        metric = "top-1" if chosen["metric"] == "top1" else "mean per class"
        how = f"{NOT_RUN}: configs/transfer.py:{chosen['set']},{label}"
        rows.append((*cells, metric, "; ".join(ours) or how))
    caption = " ".join(f"Ours: {describe([point])}" for point in used)
    columns = ("data set", "against", "peer", "accuracy", "parameters", "EfficientNet")
    columns += ("accuracy, paper", "parameters", "metric", "accuracy, ours")
    return Table(columns, rows, caption)


def table_methods(results: Results) -> Table | None:
    """Figure 8 in numbers."""
    points = results.points("the comparison of methods", "methods")
    if not points:
        return None
    base = next((point for point in points if point.series == "base"), None)

    def order(point: Point) -> tuple:
        multiple = re.findall(r"^[0-9.]+(?=x)", point.label)  # "4" of "4x (w=1.9)".
        return point != base, [float(text) for text in multiple], -point.mean

    compound = {multiple(point): point for point in points if point.series == "compound"}
    rows = []
    for point in sorted(points, key=order):
        relative = f"{point.multiply_adds / base.multiply_adds:.3f}x" if base else ""
        cost = (f"{point.multiply_adds:,}", relative, f"{point.parameters:,}")
        ahead = lead(compound.get(multiple(point)), point)
        cells = (*accuracy(point), *cost, minutes(point), ahead)
        rows.append((point.series, point.label, *cells))
    columns = ("method", "scale", "top-1", "sd", "n", "multiply-adds", "of the base's")
    columns += ("parameters", "minutes per run", "compound's lead")
    caption = describe(points)
    if any(row[-1] for row in rows):
        caption += " Compound's lead in points, with its 95 % interval (Welch's t)."
    return Table(columns, rows, caption)


def lead(first: Point | None, second: Point) -> str:
    """How far `first` is ahead in points, with a 95 % interval; "" if the interval is unknown."""
    if first is None or first.series == second.series or min(first.n, second.n) < 2:
        return ""
    from scipy import stats  # Slow to import.

    test = stats.ttest_ind(first.top1, second.top1, equal_var=False)
    low, high = (100 * end for end in test.confidence_interval(0.95))
    return f"{100 * (first.mean - second.mean):+.2f} ({low:+.2f} to {high:+.2f})"


def table_fine_tuning(results: Results) -> Table | None:
    """Methods of fine-tuning in numbers, the best first."""
    points = results.points("the table of fine-tuning", "fine_tuning")
    if not points:
        return None
    rows = []
    for point in sorted(points, key=lambda point: -point.mean):
        cost = (f"{point.parameters:,}", f"{point.multiply_adds:,}", minutes(point))
        rows.append((point.series, point.label, *accuracy(point), *cost))
    columns = ("method", "network", "top-1", "sd", "n", "parameters", "multiply-adds")
    return Table((*columns, "minutes per run"), rows, describe(points))


def table_sweeps(results: Results) -> Table | None:
    """The user's own sweeps (`Results.own`) in numbers, the best points of each first."""
    rows = []
    for title, points in results.own("the table of your sweeps").items():
        points = sorted(points, key=lambda point: -point.mean)
        for point, name in zip(points, find_swept(points).names, strict=True):
            cost = (f"{point.parameters:,}", f"{point.multiply_adds:,}", minutes(point))
            rows.append((name, *accuracy(point), title, *cost))
    columns = ("values", "top-1", "sd", "n", "sweep", "parameters", "multiply-adds")
    return Table((*columns, "minutes per run"), rows, "") if rows else None


def table_grid(results: Results) -> Table | None:
    """The grid search in numbers, the best first."""
    points = sorted(results.points("the grid search", "grid"), key=lambda p: -p.mean)
    if not points:
        return None
    rows = []
    for point in points:
        run, cells = point.runs[0], ("", "", "", "")
        axes = (run.alpha, run.beta, run.gamma)
        if None not in axes:
            product = run.alpha * (run.beta * run.gamma) ** 2
            cells = (*(f"{value:g}" for value in axes), f"{product:.3f}")
        rows.append((*cells, f"{point.multiply_adds:,}", *accuracy(point)))
    columns = ("alpha", "beta", "gamma", "product", "multiply-adds", "top-1", "sd", "n")
    return Table(columns, rows, describe(points))
