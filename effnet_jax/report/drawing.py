"""The style of the figures, and functions that draw in it: legible on a phone, without colour."""

import itertools
import math
from collections.abc import Sequence

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from effnet_jax.report.results import Point

WIDTH = 5.5  # Inches. On the screen of a phone, text is then about 10 pixels high.
DPI = 200
TEXT, SMALL = 12, 9.5
REFERENCE = "#6b6b6b"
# Colours that colour-blind readers can tell apart; every line also has its own marker.
STYLES = {
    "width": ("#0072B2", "s"),
    "depth": ("#AA4499", "^"),
    "resolution": ("#009E73", "D"),
    "compound": ("#D55E00", "o"),
    "compound_paper": ("#4D4D4D", "v"),
}


def style(series: str, number: int = 0) -> tuple[str, str]:
    """Colour and marker of a series by its name, or by its number if the name has no style."""
    return STYLES.get(series, list(STYLES.values())[number % len(STYLES)])


def new_figure(height: float, rows: int = 1, columns: int = 1, **kw) -> tuple:
    """A figure of WIDTH by `height` inches, and its axes, as from `Figure.subplots`."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, **kw)
    for each in figure.axes:
        each.tick_params(labelsize=SMALL + 1)
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def count(value: float, _: object = None) -> str:
    """Format a number of parameters or multiply-adds: "5.3 M", "390 M", "4.2 B"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def label_axes(axes: Axes, cost: str, values: Sequence[float], accuracy: str = "top-1 (%)") -> None:
    """Label the axes of accuracy over a cost; the scale is logarithmic beyond a factor of 5."""
    axes.set_ylabel(accuracy, fontsize=TEXT)
    axes.set_xlabel(cost, fontsize=TEXT)
    low, high = min(values), max(values)
    if high > 5 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 150 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(count))


def draw_points(
    axes: Axes,
    points: Sequence[Point],
    cost: str | Sequence[float],
    colour: str,
    marker: str,
    line: bool = True,
    label: str | None = None,
) -> None:
    """Draw means over `cost` with bars of one standard deviation, and each seed as a small dot.

    `cost` is an attribute of the points, "multiply_adds" or "parameters", or a number for each
    point. `line` connects the points; `label` is shown in the legend.
    """
    x = [getattr(point, cost) for point in points] if isinstance(cost, str) else cost
    y = [100 * point.mean for point in points]
    form = {"color": colour, "marker": marker, "markersize": 6, "zorder": 3, "label": label}
    form["linestyle"] = "-" if line else "none"
    pairs = zip(x, points, strict=True)
    dots = [(at, 100 * top1) for at, p in pairs if p.n > 1 for top1 in p.top1]
    if dots:
        bars = [math.nan if point.sd is None else 100 * point.sd for point in points]
        axes.errorbar(x, y, yerr=bars, elinewidth=1.4, capsize=4, **form)
        axes.scatter(*zip(*dots, strict=True), s=7, color=colour, alpha=0.55, zorder=4)
    else:
        axes.plot(x, y, **form)


def draw_ranked(axes: Axes, points: Sequence[Point], names: Sequence[str]) -> None:
    """Draw means next to names, the last at the top with a star; bars and dots as `draw_points`."""
    for place, point in enumerate(points):
        best = place == len(points) - 1
        colour, _ = style("compound" if best else "width")
        form = {"fmt": "*", "markersize": 12} if best else {"fmt": "o", "markersize": 6}
        bar = None if point.sd is None else 100 * point.sd
        axes.errorbar(100 * point.mean, place, xerr=bar, color=colour, capsize=3, **form)
        if point.n > 1:
            seeds = [100 * top1 for top1 in point.top1]
            axes.scatter(seeds, [place] * point.n, s=7, color=colour, alpha=0.5)
    # Long names are smaller: wider than the figure, they would leave no room for the axes.
    size = min(SMALL + 1, 380 / max(map(len, names)))
    axes.set_yticks(range(len(points)), names, fontsize=size, parse_math=False)
    axes.set_ylim(-0.7, len(points) - 0.3)
    axes.set_xlabel("top-1 (%)", fontsize=TEXT)


def mark_best(axes: Axes, x: float, point: Point) -> None:
    """Mark a point at `x` with a star and write its mean, rounded down, above its bar."""
    colour, y = STYLES["compound"][0], 100 * point.mean
    axes.plot(x, y, color=colour, marker="*", markersize=13, zorder=5)
    text = f"{math.floor(10 * y + 1e-6) / 10:.1f}"
    write(axes, text, (x, y + 100 * (point.sd or 0)), 0, 7, colour)


def label_values(axes: Axes, key: str, values: Sequence[float]) -> None:
    """Label the axes of accuracy over a config key; logarithmic if beyond a factor of 5."""
    ticks = sorted(set(values))
    above = [value for value in ticks if value > 0]
    if above and ticks[0] >= 0 and above[-1] > 5 * above[0]:
        axes.set_xscale("symlog", linthresh=above[0]) if ticks[0] == 0 else axes.set_xscale("log")
    if len(ticks) <= 7:
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(key, fontsize=TEXT)
    axes.set_ylabel("top-1 (%)", fontsize=TEXT)
    axes.margins(x=0.08, y=0.15)


def legend(axes: Axes) -> None:
    """Add a legend of the labels, in which a dollar sign begins no formula."""
    for text in axes.legend(fontsize=SMALL).get_texts():
        text.set_parse_math(False)


def write(axes: Axes, text: str, place: tuple, right: float, up: float, colour: str) -> None:
    """Write text near a place, offset by `right` and `up` points; centred if `right` is 0."""
    side = "left" if right > 0 else "right" if right else "center"
    form = {"ha": side, "va": "bottom" if up > 0 else "top", "fontsize": SMALL, "color": colour}
    form["parse_math"] = False  # Here and elsewhere, so that "$" in a name begins no formula.
    axes.annotate(text, place, xytext=(right, up), textcoords="offset points", **form)


def annotate(
    axes: Axes, point: Point, cost: str, text: str, colour: str, below: bool = False, right: int = 0
) -> None:
    """Label a point above or below its bar."""
    sign = -1 if below else 1
    place = getattr(point, cost), 100 * (point.mean + sign * (point.sd or 0))
    write(axes, text, place, right, 6 * sign, colour)


def reference_marks(
    axes: Axes, marks: Sequence[tuple], line: bool = False, centred: bool = False
) -> None:
    """Draw the paper's points, (x, y in percent, name or ""), in grey.

    `line` connects them. `centred` writes names above or below the points rather than beside them.
    """
    x, y, _ = zip(*marks, strict=True)
    form = {"marker": "o" if line else "x", "linestyle": "--" if line else ""}
    axes.plot(x, y, color=REFERENCE, markerfacecolor="white", markersize=5, zorder=1, **form)
    sign = 1 if line else -1  # Curves rise to the right, which leaves room at their upper left.
    for *place, name in marks:
        if name:
            write(axes, name, place, 0 if centred else -5 * sign, 4 * sign, REFERENCE)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names of lines at the right border, near their ends (y, name, colour), not touching."""
    low, high = axes.get_ylim()
    height = axes.figure.get_size_inches()[1] / len({a.get_position().y0 for a in axes.figure.axes})
    gap = 1.5 * TEXT / (72 * 0.8 * height)  # As a share of the axes, about 0.8 of a panel high.
    places = sorted([(y - low) / (high - low), name, colour] for y, name, colour in ends)
    for _ in range(50):  # Names that overlap push each other apart, up and down by equal amounts.
        for lower, upper in itertools.pairwise(places):
            push = max(0.0, gap - (upper[0] - lower[0])) / 2
            lower[0], upper[0] = lower[0] - push, upper[0] + push
    excess = max(0.0, places[-1][0] - 1)
    form = {"xycoords": "axes fraction", "va": "center", "fontsize": TEXT, "parse_math": False}
    for place, name, colour in places:
        axes.annotate(name, (1.02, place - excess), color=colour, annotation_clip=False, **form)
