"""How the paper's figures look here: legible on a phone, and without colour."""

import itertools
from collections.abc import Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker

from effnet_jax.report.results import Point

WIDTH = 5.5  # Inches: a figure as wide as a phone's screen shows its text at about 10 pixels.
DPI = 200
TEXT, SMALL = 12, 9.5
REFERENCE = "#6b6b6b"
# Colours that colour-blind readers tell apart; every line has its own marker too.
STYLES = {
    "width": ("#0072B2", "s"),
    "depth": ("#AA4499", "^"),
    "resolution": ("#009E73", "D"),
    "compound": ("#D55E00", "o"),
    "compound_paper": ("#4D4D4D", "v"),
}
OTHERS = tuple(STYLES.values())


def style(series: str, number: int = 0) -> tuple[str, str]:
    """Colour and marker of a line by name, or by number where the name has none of its own."""
    return STYLES.get(series, OTHERS[number % len(OTHERS)])


def new_figure(height: float, rows: int = 1, columns: int = 1, **kw) -> tuple:
    """A figure with a grid of axes."""
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, **kw)
    for each in figure.axes:
        each.tick_params(labelsize=SMALL + 1)
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def count(value: float, _: object = None) -> str:
    """A number of parameters or multiply-adds for an axis: "5.3 M", "390 M", "4.2 B"."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def count_axis(axes: matplotlib.axes.Axes, name: str, values: Sequence[float]) -> None:
    """The x axis for counts: logarithmic where they span much."""
    axes.set_xlabel(name, fontsize=TEXT)
    low, high = min(values), max(values)
    if high > 5 * low:
        axes.set_xscale("log")
        steps = (1, 2, 5) if high < 150 * low else (1,)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=steps))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    else:
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(count))


def accuracy_axis(axes: matplotlib.axes.Axes, name: str = "top-1 (%)") -> None:
    axes.set_ylabel(name, fontsize=TEXT)


def draw_points(
    axes: matplotlib.axes.Axes,
    points: Sequence[Point],
    cost: str,
    colour: str,
    marker: str,
    line: bool = True,
) -> None:
    """Means over `points` with a bar of one standard deviation, and every seed as a small dot.

    Args:
      points: of one line, in the order in which it joins them.
      cost: what is on the x axis, "multiply_adds" or "parameters".
    """
    x = [getattr(point, cost) for point in points]
    y = [100 * point.mean for point in points]
    form = {"linestyle": "-" if line else "none", "marker": marker, "markersize": 6}
    axes.plot(x, y, color=colour, zorder=3, **form)
    several = [point for point in points if point.n > 1]
    if several:
        axes.errorbar(
            [getattr(point, cost) for point in several],
            [100 * point.mean for point in several],
            yerr=[100 * point.sd for point in several],
            fmt="none",
            ecolor=colour,
            elinewidth=1.4,
            capsize=4,
            zorder=2,
        )
        dots = [(getattr(p, cost), 100 * top1) for p in several for top1 in p.top1]
        axes.scatter(*zip(*dots, strict=True), s=7, color=colour, alpha=0.55, zorder=4)


def annotate(
    axes: matplotlib.axes.Axes,
    point: Point,
    cost: str,
    text: str,
    colour: str,
    below: bool = False,
    aside: bool = False,
) -> None:
    """A point's own label, above or below its bar; `aside`: and to the right, clear of a curve."""
    reach = (point.sd or 0) * (-1 if below else 1)
    axes.annotate(
        text,
        (getattr(point, cost), 100 * (point.mean + reach)),
        xytext=(6 if aside else 0, -6 if below else 6),
        textcoords="offset points",
        ha="left" if aside else "center",
        va="top" if below else "bottom",
        fontsize=SMALL,
        color=colour,
    )


def label_ends(axes: matplotlib.axes.Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names of lines at the right border, near their last points and clear of each other.

    Args:
      ends: (y, name, colour) of each line's last point.
    """
    low, high = axes.get_ylim()
    height = axes.figure.get_size_inches()[1] / len({a.get_position().y0 for a in axes.figure.axes})
    gap = 1.5 * TEXT / (72 * 0.8 * height)  # Of the axes' height, which is about 0.8 of the place.
    places = sorted([(y - low) / (high - low), name, colour] for y, name, colour in ends)
    for _ in range(50):  # Names that touch push each other away, up and down alike.
        for lower, upper in itertools.pairwise(places):
            push = max(0.0, gap - (upper[0] - lower[0])) / 2
            lower[0], upper[0] = lower[0] - push, upper[0] + push
    excess = places[-1][0] - 1
    for place, name, colour in places:
        axes.annotate(
            name,
            (1.02, place - max(0.0, excess)),
            xycoords="axes fraction",
            va="center",
            fontsize=TEXT,
            color=colour,
            annotation_clip=False,
        )


def reference_marks(
    axes: matplotlib.axes.Axes,
    marks: Sequence[tuple[float, float, str]],
    line: bool = False,
    centred: bool = False,
) -> None:
    """The paper's points, in grey and hollow, with names where there is one.

    Args:
      marks: (x, y in percent, name or "").
      line: whether they make a curve.
      centred: names go above or below, where there is little room at the side.
    """
    if not marks:
        return
    x, y, names = zip(*marks, strict=True)
    form = {"marker": "o" if line else "x", "linestyle": "--" if line else ""}
    axes.plot(x, y, color=REFERENCE, markerfacecolor="white", markersize=5, zorder=1, **form)
    for across, up, name in zip(x, y, names, strict=True):
        if name:
            axes.annotate(
                name,
                (across, up),
                xytext=(0 if centred else -5, 4) if line else (0 if centred else 5, -4),
                textcoords="offset points",
                ha="center" if centred else "right" if line else "left",
                va="bottom" if line else "top",
                fontsize=SMALL,
                color=REFERENCE,
            )
