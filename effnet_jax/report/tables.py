"""The paper's tables, beside what is counted here and what runs gave: one function each.

Measured figures are rounded against us: accuracies and speed-ups down, spreads and times up. The
CSVs of the figures have them unrounded.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from effnet_jax import models, scaling
from effnet_jax.models import efficientnet, network
from effnet_jax.report import paper
from effnet_jax.report.figures import TRANSFER, counted, describe, is_imagenet
from effnet_jax.report.results import Point, Results

NOT_RUN = "not run"
NOT_STATED = "not stated"


class Table(NamedTuple):
    """A table as text, and what to know to read it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def down(value: float, digits: int = 2) -> str:
    """Rounded towards minus infinity; what is off by float error alone counts as exact."""
    size = 10**digits
    return f"{math.floor(value * size + 1e-6) / size:.{digits}f}"


def up(value: float, digits: int = 2) -> str:
    size = 10**digits
    return f"{math.ceil(value * size - 1e-6) / size:.{digits}f}"


def percent(point: Point | None) -> str:
    """Mean top-1 with its sample standard deviation and number of seeds."""
    if point is None:
        return NOT_RUN
    spread = "" if point.sd is None else f" ± {up(100 * point.sd)}"
    return f"{down(100 * point.mean)}{spread} (n = {point.n})"


def billions(value: float) -> str:
    return f"{value / 1e9:.3f} B"


def stage_rows(spec: network.Architecture) -> list[tuple[str, int, int, int]]:
    """Operator, input size, channels and layers of each row of Table 1, from the built table."""
    layers = {layer.name: layer for layer in spec.layers()}
    size = spec.resolution
    rows = [(f"Conv{spec.stem.kernel}x{spec.stem.kernel}", size, spec.stem.filters, 1)]
    size = layers["stem/conv"].size
    for blocks in spec.stages:
        first = blocks[0]
        operator = f"MBConv{first.expanded // first.inputs}, k{first.kernel}x{first.kernel}"
        rows.append((operator, size, first.outputs, len(blocks)))
        size = -(-size // first.stride)
    return [*rows, ("Conv1x1 & Pooling & FC", size, spec.head_filters, 1)]


def table1(results: Results) -> Table:
    spec = efficientnet.architecture("efficientnet", scaling.Coefficients(1.0, 1.0, 224))
    rows, differ = [], 0
    for ours, row in zip(stage_rows(spec), paper.read("table1"), strict=True):
        operator, size, channels, layers = ours
        printed = [row["input_resolution_as_printed"], row["channels"], row["layers"]]
        same = [str(size), str(channels), str(layers)] == printed
        same &= operator.startswith(row["operator"].partition("+")[0])
        same &= f"{row['kernel']}x{row['kernel']}" in operator
        differ += not same
        verdict = (
            "the same" if same else f"{row['operator']}, k{row['kernel']}, " + ", ".join(printed)
        )
        rows.append(
            (row["stage"], operator, f"{size} x {size}", str(channels), str(layers), verdict)
        )
    note = "Read off the network as it is built. " + (
        f"{differ} rows differ from the paper's."
        if differ
        else "Every row's operator, input size, channels and layers are the paper's."
    )
    columns = ("stage", "operator", "resolution", "channels", "layers", "paper")
    return Table("Table 1: the base network EfficientNet-B0", columns, rows, note)


def table2(results: Results) -> Table:
    points = results.points("table 2", "phi")
    timm = {row["model"]: row["top1"] for row in paper.read("timm")}
    used, rows = [], []
    for row in paper.read("table2"):
        name = row["model"]
        if not name.startswith("EfficientNet"):
            continue
        cost = counted(name[-2:].lower())
        found = [
            point
            for point in points
            if point.label == name[-2:].lower()
            and is_imagenet(point.data)
            and (point.parameters, point.multiply_adds) == (cost.parameters, cost.multiply_adds)
        ]
        used += found
        counts = (f"{cost.parameters:,}", f"{row['params_M']} M")
        counts += (f"{cost.multiply_adds:,}", f"{row['flops_B']} B")
        accuracy = (percent(found[0] if found else None), row["top1"], timm[name])
        rows.append((name[-2:], *counts, *accuracy))
    note = (
        "Parameters and multiply-adds are counted exactly, batch normalisation's statistics "
        "apart. timm: the released AutoAugment weights (tf_efficientnet_bN.aa_in1k). "
    )
    note += describe(used) if used else ""
    if points and not used:
        note += f"Our runs of these models on {points[0].data} are not comparable, so not here."
    columns = ("model", "parameters", "paper", "multiply-adds", "paper")
    columns += ("top-1, ours", "paper", "timm")
    return Table("Table 2: EfficientNet on ImageNet", columns, rows, note)


BASES = {"MobileNetV1": "mobilenet_v1", "MobileNetV2": "mobilenet_v2", "ResNet-50": "resnet50"}
COMPOUND = (1.4, 1.2, 1.3)  # MobileNetV1's depth, width, resolution; the others' are not stated.


def coefficient(text: str, default: float) -> float:
    """A coefficient of the paper's tables: empty means 1."""
    return default if text == NOT_STATED else float(text or 1)


def table3(results: Results) -> Table:
    points = {(p.series, p.label): p for p in results.points("table 3", "table3")}
    rows = []
    for row in paper.read("table3"):
        name = BASES[row["base_model"]]
        given = [coefficient(row[key], COMPOUND[i]) for i, key in enumerate("dwr")]
        d, w, r = given
        spec = models.base(name).architecture(scaling.Coefficients(w, d, round(224 * r)))
        cost = scaling.cost(spec.layers())
        point = points.get((name, row["scaling"]))
        ours = (percent(point), f"{point.multiply_adds:,}" if point else NOT_RUN)
        scale = f"d={d:g}, w={w:g}, r={r:g}"
        counts = (billions(cost.multiply_adds), f"{row['flops_B']} B")
        rows.append((row["base_model"], row["scaling"], scale, *counts, row["top1"], *ours))
    note = (
        "Counted at 224 pixels times r, with 1000 classes. The paper doesn't state the compound "
        "coefficients of MobileNetV2 and ResNet-50: MobileNetV1's are taken. Its 16.2 B and 14.7 B "
        "for ResNet-50 with d=4 and w=2 do not reproduce: counted they are 14.6 B and 16.1 B. "
    )
    note += measured(list(points.values()))
    columns = ("base", "scaling", "coefficients", "multiply-adds", "paper", "top-1, paper")
    columns += ("top-1, ours", "multiply-adds of our runs")
    return Table("Table 3: scaling other networks", columns, rows, note)


def measured(points: Sequence[Point]) -> str:
    """How our column came about, and whether it can be compared with the paper's."""
    if not points:
        return ""
    other = "" if is_imagenet(points[0].data) else " The paper's accuracies are on ImageNet."
    return f"Ours: {describe(points)}{other}"


LATENCY_MODELS = {
    "ResNet-152": "resnet152",
    "EfficientNet-B1": "b1",
    "GPipe": "",
    "EfficientNet-B7": "b7",
}


def table4(results: Results) -> Table:
    """The newest row of each model, and how much faster it is where the same machine has both."""
    newest: dict[str, dict[str, str]] = {}
    for row in sorted(results.latency, key=lambda row: row.get("time") or ""):
        newest[row["model"]] = row
    printed = {row["model"]: row for row in paper.read("table4")}
    names = [*LATENCY_MODELS.items(), *((n, n) for n in newest if n not in LATENCY_MODELS.values())]
    rows = []
    for name, model in names:
        ours, row = newest.get(model), printed.get(name)
        cells = [NOT_RUN if model else "this network is not here", "", ""]
        if ours:
            low, mean, high = (
                float(ours[key]) for key in ("latency_ms_min", "latency_ms", "latency_ms_max")
            )
            cells[0] = f"{up(mean, 1)} ms ({up(low, 1)} to {up(high, 1)})"
            cells[1] = (
                f"{ours['resolution']} px, batch {ours['batch']}, threads: {ours.get('threads')}"
            )
            other = newest.get("resnet152")
            if model == "b1" and other and same_machine(ours, other):
                cells[2] = f"{down(float(other['latency_ms']) / mean, 1)}x"
        speedup = (
            f"{row['speedup_of_efficientnet']}x" if row and row["speedup_of_efficientnet"] else ""
        )
        seconds = f"{1000 * float(row['latency_s']):,.0f} ms" if row else ""
        rows.append((name, *cells, seconds, speedup))
    note = (
        "Inference at batch 1 on one core, mean of 20 runs (lowest to highest). Paper: Xeon "
        "E5-2690; its speed-ups are of B1 over ResNet-152 and of B7 over GPipe."
    )
    columns = (
        "model",
        "latency, ours",
        "at",
        "speed-up, ours",
        "latency, paper",
        "speed-up, paper",
    )
    return Table("Table 4: latency of inference", columns, rows, note)


def same_machine(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two latencies may be divided by each other."""
    keys = ("batch", "dtype", "threads", "jax", "jaxlib", "device", "cpus", "python")
    return all(one.get(key) == other.get(key) for key in keys)


def table5(results: Results) -> Table:
    rows, used = [], []
    for row in paper.read("table5"):
        if row["dataset"] not in TRANSFER:
            continue  # The geometric means.
        points = []
        for data in dict.fromkeys(run.data for run in results.runs):
            if data.split("/")[0] == TRANSFER[row["dataset"]]:
                only = Results(results.runs, weights=results.weights, data=data)
                points += only.points("table 5", "phi")
        named = [point for point in points if point.label == row["efficientnet"].lower()]
        used += named

        def size(who, row=row):
            return f"{row[who]} M" if row[who] else NOT_STATED

        peer = (row["peer"], row["peer_acc"], size("peer_params_M"))
        ours = (row["efficientnet"], row["efficientnet_acc"], size("efficientnet_params_M"))
        found = "; ".join(map(percent, named)) or NOT_RUN
        rows.append((row["dataset"], row["comparison"], *peer, *ours, found))
    note = "Fine-tuned from ImageNet in the paper, which gives no settings. " + " ".join(
        f"Ours: {describe([point])}" for point in used
    )
    columns = ("data set", "against", "peer", "accuracy", "parameters")
    columns += ("EfficientNet", "accuracy, paper", "parameters", "accuracy, ours")
    return Table("Table 5: transfer learning", columns, rows, note.strip())


def table7(results: Results) -> Table:
    points = {point.series: point for point in results.points("table 7", "table7")}
    rows = []
    for row in paper.read("table7"):
        d, w, r = (float(row[key]) for key in "dwr")
        spec = efficientnet.architecture("efficientnet", scaling.Coefficients(w, d, round(224 * r)))
        cost = scaling.cost(spec.layers())
        point = points.get(row["model"])
        ours = (percent(point), f"{point.multiply_adds:,}" if point else NOT_RUN)
        counts = (billions(cost.multiply_adds), f"{row['flops_B_paper']} B")
        scale = f"d={d:g}, w={w:g}, r={r:g}"
        rows.append((row["model"], scale, *counts, row["top1_paper"], *ours))
    note = (
        "Counted with the official rounding, with which only the compound row of the paper comes "
        "out. " + measured(list(points.values()))
    )
    columns = ("model", "coefficients", "multiply-adds", "paper", "top-1, paper")
    columns += ("top-1, ours", "multiply-adds of our runs")
    return Table("Table 7: the models of the class activation maps", columns, rows, note.strip())


def multiple(point: Point) -> float:
    """What a run of `methods` aimed at, as its label says: 4 for "4x (w=1.9)"."""
    found = re.match(r"[0-9.]+(?=x)", point.label)
    return float(found[0]) if found else 0.0


def table_methods(results: Results) -> Table | None:
    """Figure 8 in numbers."""
    points = results.points("the comparison of methods", "methods")
    if not points:
        return None
    base = next((point for point in points if point.series == "base"), None)
    rows = []
    for point in sorted(points, key=lambda p: (p.series != "base", multiple(p), -p.mean)):
        relative = f"{point.multiply_adds / base.multiply_adds:.3f}x" if base else ""
        sd = "" if point.sd is None else up(100 * point.sd)
        cost = (f"{point.multiply_adds:,}", relative, f"{point.parameters:,}")
        accuracy = (down(100 * point.mean), sd, str(point.n))
        rows.append((point.series, point.label, *accuracy, *cost, up(point.minutes, 1)))
    columns = ("method", "scale", "top-1", "sd", "n", "multiply-adds", "of the base's")
    columns += ("parameters", "minutes a run")
    return Table(TABLES["table_methods"].title, columns, rows, describe(points))


def table_grid(results: Results) -> Table | None:
    """The grid search in numbers, the best first."""
    points = sorted(results.points("the grid search", "grid"), key=lambda p: -p.mean)
    if not points:
        return None
    rows = []
    for point in points:
        run = point.runs[0]
        axes = (run.alpha, run.beta, run.gamma)
        known = None not in axes
        product = f"{run.alpha * (run.beta * run.gamma) ** 2:.3f}" if known else ""
        sd = "" if point.sd is None else up(100 * point.sd)
        names = tuple(f"{value:g}" if known else "" for value in axes)
        accuracy = (down(100 * point.mean), sd, str(point.n))
        rows.append((*names, product, f"{point.multiply_adds:,}", *accuracy))
    note = describe(points) + (
        " The product is alpha * beta^2 * gamma^2. The paper found 1.2, 1.1, 1.15 for B0."
    )
    columns = ("alpha", "beta", "gamma", "product", "multiply-adds", "top-1", "sd", "n")
    return Table(TABLES["table_grid"].title, columns, rows, note)


class Entry(NamedTuple):
    """What makes a table, and the commands' sweeps that would fill it."""

    make: Callable[[Results], Table | None]
    title: str
    sweeps: tuple[str, ...] = ()


TABLES = {
    "table1": Entry(table1, "Table 1"),
    "table2": Entry(table2, "Table 2", ("phi",)),
    "table3": Entry(table3, "Table 3", ("table3",)),
    "table4": Entry(table4, "Table 4"),
    "table5": Entry(table5, "Table 5"),
    "table7": Entry(table7, "Table 7", ("table7",)),
    "table_methods": Entry(
        table_methods, "Figure 8 in numbers: scaling methods compared", ("seeds:3,methods",)
    ),
    "table_grid": Entry(table_grid, "Grid search in numbers: the candidates", ("grid",)),
}
