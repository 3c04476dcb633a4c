"""The paper's figures drawn from results, one function for each.

Costs on the axes are those counted from the networks, never the multiples that were requested.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effnet_jax.models import efficientnet
from effnet_jax.report import drawing, paper
from effnet_jax.report.results import Point, Results, Swept, describe, find_swept, multiple

COSTS = {"multiply_adds": "multiply-adds", "parameters": "parameters"}
SHOWN = {"compound_paper": "paper's comp."}  # Short names of series for figures.
# The other networks of Table 2 for whose names there is room.
NAMED_PEERS = ("ResNet-50", "ResNet-152", "Inception-v3", "Inception-ResNet-v2", "ResNeXt-101")
NAMED_PEERS += ("SENet", "AmoebaNet-C", "GPipe")


class Drawn(NamedTuple):
    """A figure, its caption, and the rows of its CSV."""

    figure: Figure
    caption: str
    rows: list[dict[str, Any]]


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Our points as rows of the figure's CSV, unrounded."""
    return [
        {"source": "ours"}
        | {key: getattr(point, key) for key in ("series", "label", "data", *COSTS)}
        | {"top1_mean": point.mean, "top1_sd": "" if point.sd is None else point.sd}
        | {"n": point.n, "seeds": " ".join(str(run.seed) for run in point.runs)}
        for point in points
    ]


def paper_row(series: str, label: str, data: str, top1: str, **costs: float) -> dict[str, Any]:
    """One of the paper's points as a row of the same CSV."""
    row = {"source": "paper", "series": series, "label": label, "data": data}
    row |= dict.fromkeys(COSTS, "") | costs | {"top1_mean": round(float(top1) / 100, 4)}
    return row | dict.fromkeys(("top1_sd", "n", "seeds"), "")


def table2_rows() -> list[dict[str, Any]]:
    """The rows of Table 2: EfficientNets with counted costs, other networks with printed ones."""
    result = []
    for row in paper.read("table2"):
        series, _, label = row["model"].partition("-B")
        if series == "EfficientNet":
            cost = paper.counted(*efficientnet.VARIANTS[f"b{label}"][:4])
            parameters, multiply_adds = cost.parameters, cost.multiply_adds
        else:
            series = "others"
            parameters = round(1e6 * float(row["params_M"] or 0)) or ""
            multiply_adds = round(1e9 * float(row["flops_B"] or 0)) or ""
        costs = {"parameters": parameters, "multiply_adds": multiply_adds}
        result.append(paper_row(series, row["model"], "imagenet", row["top1"], **costs))
    return result


def marks(rows: Sequence[dict[str, Any]], cost: str) -> list[tuple[float, float, str]]:
    """The points (cost, top-1 in percent, label) of the paper's rows that have the cost."""
    return [(row[cost], 100 * row["top1_mean"], row["label"]) for row in rows if row[cost]]


def by_cost(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.multiply_adds)


def curve(results: Results, what: str, cost: str) -> Drawn:
    """Figure 1 or 5: compound scaling, top-1 over a cost."""
    points, others = by_cost(results.points(what, "phi")), []
    if not points:
        methods = results.points(what, "methods")
        points = by_cost([each for each in methods if each.series in ("base", "compound")])
        others = by_cost([each for each in methods if each not in points])
    drawn, caption = rows([*points, *others]), describe(points)
    figure, axes = drawing.new_figure(4.6)
    if others:
        caption += " The line is compound scaling; the points are the other methods of figure 8."
    for name in dict.fromkeys(point.series for point in others):
        line = [point for point in others if point.series == name]
        form = {"line": False, "label": SHOWN.get(name, name)}
        drawing.draw_points(axes, line, cost, *drawing.style(name), **form)
    if points and not paper.is_imagenet(points[0].data):
        caption += f" The paper's points are left out; its accuracies are not on {points[0].data}."
    else:
        reference = table2_rows()
        drawn += reference
        ours = marks([row for row in reference if row["series"] == "EfficientNet"], cost)
        peers = marks([row for row in reference if row["series"] == "others"], cost)
        named = [(x, y, name if name in NAMED_PEERS else "") for x, y, name in peers]
        drawing.reference_marks(axes, named)
        drawing.reference_marks(axes, [(x, y, name[-2:]) for x, y, name in ours], line=True)
        caption += (
            " Grey: the paper's Table 2; EfficientNet (dashed) at counted costs, other networks "
            "(crosses) at the costs that the paper prints."
        )
        caption += "" if points else " Our networks: not run."
    colour, marker = drawing.style("compound")
    drawing.draw_points(axes, points, cost, colour, marker, label="compound")
    for point in points:
        name = point.label.partition(" ")[0]  # "2x" of "2x (phi+1.4)".
        right, up = (-7, 3) if others else (7, -3)
        drawing.write(axes, name, (getattr(point, cost), 100 * point.mean), right, up, colour)
    if others:
        drawing.legend(axes)
    drawing.label_axes(axes, COSTS[cost], [row[cost] for row in drawn if row[cost]])
    axes.margins(x=0.12, y=0.12)
    return Drawn(figure, caption.strip(), drawn)


figure1 = functools.partial(curve, what="figure 1", cost="parameters")
figure5 = functools.partial(curve, what="figure 5", cost="multiply_adds")


def figure3(results: Results) -> Drawn | None:
    """Scaling width, depth or resolution alone, each in its own panel."""
    kinds = ("width", "depth", "resolution")
    points = [p for p in results.points("figure 3", *kinds) if p.series in kinds]
    if not points:
        return None
    present = [kind for kind in kinds if any(point.series == kind for point in points)]
    figure, _ = drawing.new_figure(0.4 + 3.2 * len(present), len(present), sharey=True)
    for axes, kind in zip(figure.axes, present, strict=True):
        line = by_cost([point for point in points if point.series == kind])
        colour, marker = drawing.style(kind)
        drawing.draw_points(axes, line, "multiply_adds", colour, marker)
        for number, point in enumerate(line):  # Labels alternate between above and below.
            drawing.annotate(axes, point, "multiply_adds", point.label, colour, number % 2 == 1)
        costs = [point.multiply_adds for point in line]
        drawing.label_axes(axes, f"multiply-adds, {kind} alone", costs)
        axes.margins(x=0.1, y=0.15)
    caption = describe(points)
    if missing := [kind for kind in kinds if kind not in present]:
        caption += f" Not run: {', '.join(missing)}."
    return Drawn(figure, caption, rows(points))


def lines(axes: Axes, points: Sequence[Point], start: Sequence[Point] = ()) -> None:
    """Draw top-1 over multiply-adds, with a named line from `start` for each series."""
    names = dict.fromkeys(point.series for point in points if point not in start)
    ends = []
    for number, name in enumerate(names):
        line = [*start, *by_cost([point for point in points if point.series == name])]
        colour, marker = drawing.style(name, number)
        drawing.draw_points(axes, line, "multiply_adds", colour, marker)
        ends.append((100 * line[-1].mean, SHOWN.get(name, name), colour))
    if start:
        drawing.draw_points(axes, start, "multiply_adds", "black", "o", line=False)
        drawing.annotate(axes, start[0], "multiply_adds", "base", "black", below=True)
    drawing.label_axes(axes, "multiply-adds", [point.multiply_adds for point in points])
    axes.margins(y=0.1)
    if ends:
        drawing.label_ends(axes, ends)


def figure4(results: Results) -> Drawn | None:
    """Scaling width at several depths and resolutions."""
    points = results.points("figure 4", "width_at")
    if not points:
        return None
    figure, axes = drawing.new_figure(4.4)
    lines(axes, points)
    return Drawn(figure, describe(points), rows(points))


def figure_fine_tuning(results: Results) -> Drawn | None:
    """Methods of fine-tuning and networks, with a panel for each cost."""
    points = by_cost(results.points("the figure of fine-tuning", "fine_tuning"))
    if not points:
        return None
    figure, panels = drawing.new_figure(7.6, len(COSTS), sharey=True)
    for axes, (cost, name) in zip(panels, COSTS.items(), strict=True):
        for number, series in enumerate(dict.fromkeys(point.series for point in points)):
            line = [point for point in points if point.series == series]
            form = drawing.style(series, number)
            drawing.draw_points(axes, line, cost, *form, line=len(line) > 1, label=series)
            for point in line if len(line) > 1 else ():
                drawing.annotate(axes, point, cost, point.label, form[0])
        drawing.label_axes(axes, name, [getattr(point, cost) for point in points])
        axes.margins(x=0.1, y=0.15)
    panels[0].legend(fontsize=drawing.SMALL)
    return Drawn(figure, describe(points), rows(points))


def figure7(results: Results) -> Drawn | None:
    """Activation maps of networks that are scaled differently."""
    if results.compared is None:
        return None
    from effnet_jax.report import maps  # Slow to import: needs JAX and the readers of weights.

    return Drawn(*maps.compare(results.compared))


def figure8(results: Results) -> Drawn | None:
    """Scaling one of width, depth and resolution, and scaling all three, from the same base."""
    points = results.points("figure 8", "methods")
    if not points:
        return None
    start = [point for point in points if point.series == "base"]
    low = start[0].mean - 0.1 if start else 0.0
    fallen = {point.series for point in points if point.mean < low}
    near = [point for point in points if point.series not in fallen]
    panels, caption = [points], describe(points)
    if fallen and len(near) > 1:
        panels.append(near)
        without = f"without {', '.join(sorted(fallen))}"
        caption += (
            f" The lower panel shows the same points {without}, whose accuracy falls more than 10 "
            "points below the base's, so that the other lines can be told apart."
        )
    figure, _ = drawing.new_figure(3.9 * len(panels), len(panels))
    for axes, shown in zip(figure.axes, panels, strict=True):
        lines(axes, shown, start)
        if shown is near:
            axes.set_title(without, fontsize=drawing.SMALL + 1, parse_math=False)
    if any(point.series == "compound_paper" for point in points):
        caption += (
            " Compound scaling uses the coefficients found here, or the paper's 1.2, 1.1, 1.15."
        )
    return Drawn(figure, caption, rows(points))


def figure_curves(results: Results) -> Drawn | None:
    """Top-1 by epoch of the networks of figure 8, to show whether it still rises at the end."""
    points = [point for point in results.points("the curves", "methods") if point.curve]
    if not points:
        return None
    costs = sorted({multiple(point) for point in points}, key=lambda text: float(text.strip("x")))
    figure, _ = drawing.new_figure(0.3 + 2.3 * len(costs), len(costs), sharex=True, squeeze=False)
    drawn, gains = [], []
    for axes, cost in zip(figure.axes, costs, strict=True):
        for number, point in enumerate(p for p in points if multiple(p) == cost):
            colour, _ = drawing.style(point.series, number)
            epochs, top1 = zip(*point.curve, strict=True)
            name = SHOWN.get(point.series, point.series)
            axes.plot(epochs, [100 * y for y in top1], color=colour, label=name)
            gains.append(top1[-1] - next(y for x, y in point.curve if x >= 0.8 * epochs[-1]))
            one = {"series": point.series, "label": point.label}
            drawn += [one | {"epoch": x, "top1_mean": y} for x, y in point.curve]
        axes.set_title(cost, fontsize=drawing.SMALL + 1, loc="left")
        axes.set_ylabel("top-1 (%)", fontsize=drawing.TEXT)
        axes.legend(fontsize=drawing.SMALL)
    axes.set_xlabel("epoch", fontsize=drawing.TEXT)
    caption = (
        f"Means over seeds. They change by {100 * min(gains):+.1f} to {100 * max(gains):+.1f} "
        "points in the last fifth of the training."
    )
    return Drawn(figure, caption, drawn)


def figure_grid(results: Results) -> Drawn | None:
    """The candidates of the small grid search, with the best at the top."""
    points = sorted(results.points("the grid search", "grid"), key=lambda point: point.mean)
    if not points:
        return None
    figure, axes = drawing.new_figure(1.0 + 0.27 * len(points))
    names = [f"{point.label}  ({drawing.count(point.multiply_adds)})" for point in points]
    drawing.draw_ranked(axes, points, names)
    axes.set_ylabel("alpha, beta, gamma", fontsize=drawing.TEXT)
    caption = f"{describe(points)} {best(points, [point.label for point in points])}"
    return Drawn(figure, caption, rows(points))


def best(points: Sequence[Point], names: Sequence[str]) -> str:
    """A sentence about the best of points in ascending order, and how many overlap its bar."""
    *others, first = points
    equal = [name for name, p in zip(names, points, strict=True) if p.mean == first.mean]
    text = f"The best mean: {' and '.join(equal)}."
    if first.sd is not None and others:
        low = first.mean - first.sd
        overlap = sum(p.mean + p.sd >= low for p in others if p.sd is not None)
        text += f" The bars of {overlap} of the other {len(others)} overlap its bar."
    return text


def figure_sweeps(results: Results) -> Drawn | None:
    """The user's own sweeps (`Results.own`), each over the config key that it changes."""
    sweeps = results.own("the figure of your sweeps")
    if not sweeps:
        return None
    drawn_sweeps = [find_swept(points) for points in sweeps.values()]
    heights = [3.6 if each.key else 1.0 + 0.27 * len(each.names) for each in drawn_sweeps]
    figure, _ = drawing.new_figure(sum(heights), len(drawn_sweeps), height_ratios=heights)
    drawn, captions = [], []
    for axes, swept, (title, points) in zip(figure.axes, drawn_sweeps, sweeps.items(), strict=True):
        ranked = sorted(zip(points, swept.names, strict=True), key=lambda pair: pair[0].mean)
        axes.set_title(title, fontsize=drawing.SMALL + 1, parse_math=False)
        draw_sweep(axes, swept, *zip(*ranked, strict=True))
        captions.append(f"{title}: {describe(points)} {best(*zip(*ranked, strict=True))}")
        drawn += [dict(p.runs[0].swept) | row for p, row in zip(points, rows(points), strict=True)]
    columns = dict.fromkeys(key for row in drawn for key in row)
    drawn = [{key: row.get(key, "") for key in columns} for row in drawn]
    return Drawn(figure, " ".join(captions), drawn)


def draw_sweep(axes: Axes, swept: Swept, points: Sequence[Point], names: Sequence[str]) -> None:
    """Draw a sweep over its key, with a line for each value of the other keys, or as a ranking.

    `points` and `names` are in ascending order of top-1.
    """
    if not swept.key:
        drawing.draw_ranked(axes, points, names)
        return
    for number, (name, line) in enumerate(swept.lines.items()):
        x, at = zip(*line, strict=True)
        drawing.draw_points(axes, at, x, *drawing.style("", number), label=name)
    pairs = [pair for line in swept.lines.values() for pair in line]
    drawing.label_values(axes, swept.key, [x for x, _ in pairs])
    drawing.mark_best(axes, *max(pairs, key=lambda pair: pair[1].mean))
    if len(swept.lines) > 1:
        drawing.legend(axes)


def figure6(results: Results) -> Drawn:
    """Transfer learning, with a panel for each data set of Table 5."""
    figure, panels = drawing.new_figure(9.5, 4, 2)
    table, drawn, captions, left = paper.read("table5"), [], [], []
    for axes, (name, chosen) in zip(panels.flat, paper.transfer().items(), strict=True):
        reference = [
            paper_row(who, row[who], name, row[f"{who}_acc"], parameters=round(1e6 * millions))
            for row in table
            for who in ("peer", "efficientnet")
            if row["dataset"] == name and (millions := float(row[f"{who}_params_M"] or 0))
        ]
        drawn += [row | {"metric": chosen["metric"]} for row in reference]
        peers = marks([row for row in reference if row["series"] == "peer"], "parameters")
        ours = marks([row for row in reference if row["series"] != "peer"], "parameters")
        drawing.reference_marks(axes, peers, centred=True)
        drawing.reference_marks(axes, ours, line=True)
        heights = [y for _, y, _ in peers + ours]
        points = by_cost(results.transfer("figure 6", chosen))
        drawing.draw_points(axes, points, "parameters", *drawing.style("compound"))
        heights += [100 * top1 for point in points for top1 in point.top1]
        ours = zip(points, rows(points), strict=True)
        drawn = [row | {"metric": point.metric} for point, row in ours] + drawn
        captions += [f"{name}: {describe(points)}"] if points else []
        left += [] if points else [f"{name} (configs/transfer.py:{chosen['set']},MODEL)"]
        axes.set_title(name, fontsize=drawing.TEXT)
        sizes = [point.parameters for point in points]
        drawing.label_axes(axes, "parameters", [*sizes, 1e6, 1.5e9], "accuracy (%)")
        axes.set_xlim(min([0.5 * size for size in sizes] + [1e6]), 1.5e9)
        axes.set_ylim(min(heights) - 1.3, max(heights) + 1.3)
    captions += [f"Not run: {', '.join(left)}."] if left else []
    return Drawn(figure, "Ours: " + " ".join(captions), drawn)
