"""The paper's figures, from results: one function each.

Costs on the axes are counted from the networks, never the multiples that were asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from effnet_jax import scaling
from effnet_jax.models import efficientnet
from effnet_jax.report import drawing, paper
from effnet_jax.report.results import Point, Results

COSTS = {"multiply_adds": "multiply-adds", "parameters": "parameters"}
# TFDS's names of Table 5's data sets; what TFDS doesn't have is as a folder would be named.
TRANSFER = {
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar100",
    "Birdsnap": "birdsnap",
    "Stanford Cars": "cars196",
    "Flowers": "oxford_flowers102",
    "FGVC Aircraft": "fgvc_aircraft",
    "Oxford-IIIT Pets": "oxford_iiit_pet",
    "Food-101": "food101",
}
# Of Table 2's other networks, those whose names find room.
NAMED_PEERS = ("ResNet-50", "ResNet-152", "Inception-v3", "Inception-ResNet-v2", "ResNeXt-101")
NAMED_PEERS += ("SENet", "AmoebaNet-C", "GPipe")


class Drawn(NamedTuple):
    """A figure, what to know to read it, and the points in it."""

    figure: Figure
    caption: str
    rows: list[dict[str, Any]]


def is_imagenet(data: str) -> bool:
    """Whether accuracies on it are comparable with the paper's: ImageNet's validation images."""
    name, _, split = data.partition("/")
    return name in ("imagenet2012", "imagenet") and split in ("validation", "val")


def counted(name: str) -> scaling.Cost:
    """The cost of a published EfficientNet, by its short name."""
    base, width, depth, resolution, _ = efficientnet.VARIANTS[name]
    coefficients = scaling.Coefficients(width, depth, resolution)
    return scaling.cost(efficientnet.architecture(base, coefficients).layers())


def describe(points: Sequence[Point]) -> str:
    """How the runs were made, in words."""

    def span(values, digits="g"):
        low, high = min(values), max(values)
        return f"{low:{digits}}" if low == high else f"{low:{digits}} to {high:{digits}}"

    first = points[0]
    runs = [run for point in points for run in point.runs]
    kind = "averaged (EMA)" if first.weights == "ema" else "raw"
    seeds = span([point.n for point in points])
    spread = (
        f"{seeds} seeds a point: means, bars of one sample standard deviation, a dot for each seed"
        if max(point.n for point in points) > 1
        else "one run a point (n = 1), so that the spread is not known"
    )
    return (
        f"Top-1 of the {kind} weights on {first.data} ({span([r.count for r in runs], ',')} "
        f"images), after {span([run.epochs for run in runs])} epochs at batch "
        f"{span([run.batch_size for run in runs])}. {spread[0].upper()}{spread[1:]}."
    )


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Our points for the figure's CSV, as they are, not rounded."""
    return [
        {
            "source": "ours",
            "series": point.series,
            "label": point.label,
            "data": point.data,
            "multiply_adds": point.multiply_adds,
            "parameters": point.parameters,
            "top1_mean": point.mean,
            "top1_sd": "" if point.sd is None else point.sd,
            "n": point.n,
            "seeds": " ".join(str(run.seed) for run in point.runs),
        }
        for point in points
    ]


def paper_row(series: str, label: str, data: str, top1: str, **costs: float) -> dict[str, Any]:
    """One of the paper's points for the same CSV."""
    row = dict.fromkeys(("source", "series", "label", "data", *COSTS, "top1_mean", "top1_sd"), "")
    row |= {"source": "paper", "series": series, "label": label, "data": data, **costs}
    return {**row, "top1_mean": round(float(top1) / 100, 4), "n": "", "seeds": ""}


def by_cost(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.multiply_adds)


def curve(results: Results, what: str, cost: str) -> Drawn:
    """Compound scaling against a cost: figures 1 and 5."""
    points = by_cost(results.points(what, "phi"))
    comparable = not points or is_imagenet(points[0].data)
    figure, axes = drawing.new_figure(4.6)
    xs = [getattr(point, cost) for point in points]
    drawn, caption = rows(points), describe(points) if points else ""
    if comparable:
        ours, peers = [], []
        for row in paper.read("table2"):
            label = row["model"]
            if label.startswith("EfficientNet"):
                found = counted(label[-2:].lower())
                costs = {key: getattr(found, key) for key in COSTS}
                ours.append((costs[cost], float(row["top1"]), label[-2:]))
            else:
                printed = {"parameters": ("params_M", 1e6), "multiply_adds": ("flops_B", 1e9)}
                costs = {
                    key: round(float(row[column]) * size)
                    for key, (column, size) in printed.items()
                    if row[column]
                }
                if cost in costs:
                    named = label if label in NAMED_PEERS else ""
                    peers.append((costs[cost], float(row["top1"]), named))
            series = "EfficientNet" if label.startswith("EfficientNet") else "others"
            drawn.append(paper_row(series, label, "imagenet", row["top1"], **costs))
        drawing.reference_marks(axes, peers)
        drawing.reference_marks(axes, ours, line=True)
        xs += [x for x, *_ in ours + peers]
        caption += (
            " Grey: the paper's Table 2; EfficientNet's dashed curve at counted costs, the others "
            "(crosses) at the costs that the paper prints."
        )
        caption += "" if points else " Ours: not run."
    else:
        caption += f" The paper's points are not here: its accuracies are not on {points[0].data}."
    if points:
        colour, marker = drawing.style("compound")
        drawing.draw_points(axes, points, cost, colour, marker)
        for point in points:
            drawing.annotate(axes, point, cost, point.label, colour, below=True, aside=True)
    drawing.count_axis(axes, COSTS[cost], xs)
    drawing.accuracy_axis(axes)
    axes.margins(x=0.12, y=0.12)
    return Drawn(figure, caption.strip(), drawn)


def figure1(results: Results) -> Drawn | None:
    return curve(results, "figure 1", "parameters")


def figure5(results: Results) -> Drawn | None:
    return curve(results, "figure 5", "multiply_adds")


def figure3(results: Results) -> Drawn | None:
    """One dimension at a time, a panel each."""
    kinds = ("width", "depth", "resolution")
    points = [p for p in results.points("figure 3", *kinds) if p.series in kinds]
    if not points:
        return None
    present = [kind for kind in kinds if any(point.series == kind for point in points)]
    figure, panels = drawing.new_figure(
        0.4 + 3.2 * len(present), len(present), sharey=True, squeeze=False
    )
    missing = [kind for kind in kinds if kind not in present]
    for axes, kind in zip(panels[:, 0], present, strict=True):
        line = by_cost([point for point in points if point.series == kind])
        colour, marker = drawing.style(kind)
        drawing.draw_points(axes, line, "multiply_adds", colour, marker)
        for number, point in enumerate(line):
            below = number % 2 == 1
            drawing.annotate(axes, point, "multiply_adds", point.label, colour, below)
        costs = [point.multiply_adds for point in line]
        drawing.count_axis(axes, f"multiply-adds, {kind} alone", costs)
        drawing.accuracy_axis(axes)
        axes.margins(x=0.1, y=0.15)
    caption = describe(points) + (
        " The paper's own points are not in its text, which says that on ImageNet each dimension "
        "alone saturates at about 80 %."
    )
    caption += f" Not run: {', '.join(missing)}." if missing else ""
    return Drawn(figure, caption, rows(points))


NAMES = {"compound_paper": "paper's comp."}


def lines(axes: Any, points: Sequence[Point], start: Sequence[Point] = ()) -> None:
    """Top-1 over multiply-adds, a line a series, its name at its end; all begin at `start`."""
    names = list(dict.fromkeys(point.series for point in points if point not in start))
    ends = []
    for number, name in enumerate(names):
        line = [*start, *by_cost([point for point in points if point.series == name])]
        colour, marker = drawing.style(name, number)
        drawing.draw_points(axes, line, "multiply_adds", colour, marker)
        ends.append((100 * line[-1].mean, NAMES.get(name, name), colour))
    if start:
        drawing.draw_points(axes, start, "multiply_adds", "black", "o", line=False)
    drawing.count_axis(axes, "multiply-adds", [point.multiply_adds for point in points])
    drawing.accuracy_axis(axes)
    if ends:
        drawing.label_ends(axes, ends)


def figure4(results: Results) -> Drawn | None:
    """Width at other depths and resolutions."""
    points = results.points("figure 4", "width_at")
    if not points:
        return None
    figure, axes = drawing.new_figure(4.4)
    lines(axes, points)
    caption = describe(points) + (
        " Each line widens the base scaled by d and r. The paper's own points are not in its text."
    )
    return Drawn(figure, caption, rows(points))


def figure8(results: Results) -> Drawn | None:
    """Width, depth or resolution alone against all three, from one base."""
    points = results.points("figure 8", "methods")
    if not points:
        return None
    start = [point for point in points if point.series == "base"]
    # Where a method falls far below the base, the others would be a single line: they are drawn
    # once more without it.
    low = start[0].mean - 0.1 if start else 0.0
    fallen = {point.series for point in points if point.mean < low}
    near = [point for point in points if point.series not in fallen]
    panels = [points, near] if fallen and len(near) > 1 else [points]
    figure, _ = drawing.new_figure(3.9 * len(panels), len(panels))
    for axes, shown in zip(figure.axes, panels, strict=True):
        lines(axes, shown, start)
        axes.margins(y=0.1)
        if start:
            drawing.annotate(axes, start[0], "multiply_adds", "base", "black", below=True)
    caption = describe(points) + (
        " Rounding leaves networks a little off equal multiply-adds: the axis has the real ones. "
        "The paper's own points are not in its text, which says that compound scaling gains up to "
        "2.5 points on ImageNet."
    )
    if len(panels) > 1:
        caption += f" Below, the same without {', '.join(sorted(fallen))}."
    if any(point.series == "compound_paper" for point in points):
        caption += (
            " Compound scaling by the coefficients of our own search, and (paper's) by 1.2, 1.1, "
            "1.15."
        )
    return Drawn(figure, caption, rows(points))


def figure_grid(results: Results) -> Drawn | None:
    """The candidates of the small grid search, the best on top."""
    points = sorted(results.points("the grid search", "grid"), key=lambda point: point.mean)
    if not points:
        return None
    figure, axes = drawing.new_figure(1.0 + 0.27 * len(points))
    for place, point in enumerate(points):
        best = place == len(points) - 1
        colour = drawing.STYLES["compound" if best else "width"][0]
        axes.errorbar(
            100 * point.mean,
            place,
            xerr=None if point.sd is None else 100 * point.sd,
            fmt="*" if best else "o",
            markersize=12 if best else 6,
            color=colour,
            capsize=3,
        )
        if point.n > 1:
            axes.scatter(
                [100 * top1 for top1 in point.top1], [place] * point.n, s=7, color=colour, alpha=0.5
            )
    names = [f"{point.label}  ({drawing.count(point.multiply_adds)})" for point in points]
    axes.set_yticks(range(len(points)), names)
    axes.set_ylim(-0.7, len(points) - 0.3)
    axes.set_ylabel("alpha, beta, gamma", fontsize=drawing.TEXT)
    axes.set_xlabel("top-1 (%)", fontsize=drawing.TEXT)
    best = points[-1]
    caption = f"{describe(points)} In brackets, multiply-adds. The star is the best mean: "
    caption += f"{best.label}."
    if best.sd is not None:
        near = [point for point in points[:-1] if point.sd is not None]
        near = [point for point in near if point.mean + point.sd >= best.mean - best.sd]
        caption += f" The bars of {len(near)} of the {len(points) - 1} others overlap its bar."
    return Drawn(figure, caption, rows(points))


def figure6(results: Results) -> Drawn | None:
    """Transfer: a panel for each data set of Table 5."""
    figure, panels = drawing.new_figure(9.5, 4, 2)
    drawn, ours = [], []
    found: dict[str, list[Point]] = {}
    for run_data in dict.fromkeys(run.data for run in results.runs):
        only = Results(results.runs, weights=results.weights, data=run_data)
        found.setdefault(run_data.split("/")[0], []).extend(only.points("figure 6", "phi"))
    for axes, (name, tfds_name) in zip(panels.flat, TRANSFER.items(), strict=True):
        marks: dict[str, list] = {"peer": [], "efficientnet": []}
        for row in paper.read("table5"):
            for who, made in marks.items():
                if row["dataset"] == name and row[f"{who}_params_M"]:
                    millions, top1 = float(row[f"{who}_params_M"]), row[f"{who}_acc"]
                    made.append((1e6 * millions, float(top1), row[who]))
                    costs = {"parameters": round(1e6 * millions)}
                    drawn.append(paper_row(who, row[who], name, top1, **costs))
        for who, made in marks.items():
            drawing.reference_marks(axes, made, line=who != "peer", centred=who == "peer")
        heights = [y for made in marks.values() for _, y, _ in made]
        points = by_cost(found.get(tfds_name, ()))
        if points:
            drawing.draw_points(axes, points, "parameters", *drawing.style("compound"))
            heights += [100 * top1 for point in points for top1 in point.top1]
            drawn = rows(points) + drawn
            ours.append(f"{name}: {describe(points)}")
        axes.set_title(name, fontsize=drawing.TEXT)
        sizes = [point.parameters for point in points]
        drawing.count_axis(axes, "parameters", [*sizes, 1e6, 1.5e9])
        axes.set_xlim(min([0.5 * size for size in sizes] + [1e6]), 1.5e9)
        axes.set_ylim(min(heights) - 1.3, max(heights) + 1.3)
        drawing.accuracy_axis(axes, "accuracy (%)")
    caption = (
        "Grey: the paper's Table 5 (circles: EfficientNet, crosses: others), fine-tuned from "
        "ImageNet; models whose parameters it doesn't state are left out. Ours: "
    )
    return Drawn(figure, caption + (" ".join(ours) if ours else "not run."), drawn)


class Entry(NamedTuple):
    """A figure's title, what draws it, and the sweeps that would fill it."""

    title: str
    draw: Callable[[Results], Drawn | None]
    sweeps: tuple[str, ...]


FIGURES = {
    "figure1": Entry("Figure 1: accuracy and size of the model", figure1, ("phi",)),
    "figure3": Entry(
        "Figure 3: scaling width, depth or resolution alone",
        figure3,
        ("width", "depth", "resolution"),
    ),
    "figure4": Entry("Figure 4: scaling width of other base networks", figure4, ("width_at",)),
    "figure5": Entry("Figure 5: accuracy and multiply-adds", figure5, ("phi",)),
    "figure6": Entry("Figure 6: accuracy and size in transfer learning", figure6, ("phi",)),
    "figure8": Entry("Figure 8: scaling methods compared", figure8, ("seeds:3,methods",)),
    "figure_grid": Entry("Grid search: alpha, beta and gamma", figure_grid, ("grid",)),
}
