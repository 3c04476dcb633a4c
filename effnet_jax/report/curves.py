"""The curves of a run: loss, accuracy and learning rate by epoch."""

import math
import pathlib

import matplotlib.figure
from matplotlib.axes import Axes

from effnet_jax.report import drawing

Curve = list[tuple[float, float]]  # Pairs of epoch and value.
COLOURS = [colour for colour, _ in drawing.STYLES.values()]
WEIGHTS = {  # Raw weights are drawn thinner and on top, so that equal curves both remain visible.
    "ema": {"linestyle": "-", "marker": "o", "markersize": 4.5, "linewidth": 2.2},
    "raw": {"linestyle": "--", "marker": "s", "markersize": 3.5, "markerfacecolor": "white"},
}


def draw_curves(rows: list[dict[str, float]], path: pathlib.Path, title: str = "") -> None:
    """Draw the training and evaluation metrics in the rows of metrics.jsonl to a PNG file.

    The axes show the range in which the curves settle. Evaluations far outside this range are
    marked at the border.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 5.6), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "top1"], ["rate", "rate"]], height_ratios=(3, 1))
    figure.suptitle(title, fontsize=drawing.TEXT + 1, parse_math=False)
    for axes in panels.values():
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("epoch")
    keys = (key for row in rows for key in row if key.count("/") == 2)
    evaluations = dict.fromkeys(key.partition("/")[0] for key in keys)
    for metric, scale, label in (("loss", 1, "cross-entropy"), ("top1", 100, "top-1 (%)")):
        smoothed = ", smoothed labels" if metric == "loss" else ""
        training = {"label": f"training (augmented{smoothed})", "color": "gray", "alpha": 0.5}
        lines = [(curve(rows, f"train_{metric}", scale), training)]
        for number, evaluation in enumerate(evaluations):
            for weights, form in WEIGHTS.items():
                form = form | {"color": COLOURS[(2 * number + (weights == "raw")) % len(COLOURS)]}
                form["label"] = f"evaluation {evaluation}/{weights}"
                lines.append((curve(rows, f"{evaluation}/{weights}/{metric}", scale), form))
        draw_lines(panels[metric], [(points, form) for points, form in lines if points])
        panels[metric].set_ylabel(label)
    if rate := curve(rows, "learning_rate", 1):
        plot(panels["rate"], rate, {"color": "gray"})
    panels["rate"].set_ylabel("learning rate")
    panels["rate"].set_ylim(bottom=0)
    for axes in panels.values():  # From 0, even if the only evaluation is at the end of the run.
        axes.set_xlim(0, 1.02 * max((row["epoch"] for row in rows), default=0) or 1)
    figure.savefig(path, dpi=120)


def curve(rows: list[dict[str, float]], key: str, scale: float) -> Curve:
    """The finite values of a metric by epoch, multiplied by `scale`."""
    pairs = [(row["epoch"], scale * row[key]) for row in rows if key in row]
    return [(epoch, value) for epoch, value in pairs if math.isfinite(value)]


def plot(axes: Axes, points: Curve, form: dict) -> None:
    """Draw a curve. A curve of one point always has a marker, since it has no visible line."""
    axes.plot(*zip(*points, strict=True), **({"marker": "o"} if len(points) == 1 else {}) | form)


def draw_lines(axes: Axes, lines: list[tuple[Curve, dict]]) -> None:
    """Draw curves within their `limits`, and evaluations beyond them as triangles at the border."""
    if not lines:
        return
    low, high = limits([[value for _, value in points] for points, _ in lines])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    beyond = []
    for points, form in lines:
        plot(axes, points, form)
        far = [(epoch, v) for epoch, v in points if "marker" in form and not low <= v <= high]
        for epoch, value in far:
            place = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            up = value > high
            axes.plot(epoch, int(up), color=form["color"], marker="^" if up else "v", **place)
        beyond += [value for _, value in far]
    if beyond:
        ends = dict.fromkeys(f"{value:.3g}" for value in (min(beyond), max(beyond)))
        text = f"triangles: values beyond the axis, {' to '.join(ends)}"
        axes.set_title(text, fontsize=drawing.SMALL - 1, color=drawing.REFERENCE, loc="right")
    drawing.legend(axes)


def limits(curves: list[list[float]]) -> tuple[float, float]:
    """The range of values in which the curves settle, with a margin; outliers don't change it.

    It covers the last value of each curve and the middle half of its last three quarters.
    """
    low, high = math.inf, -math.inf
    for values in curves:
        late = sorted(values[len(values) // 4 :])
        n = len(late) - 1
        low = min(low, late[math.ceil(n / 4)], values[-1])
        high = max(high, late[math.floor(3 * n / 4)], values[-1])
    more = 3 * (high - low) or 0.1 * abs(high) or 1.0
    every = [value for values in curves for value in values]
    return max(low - more, min(every)), min(high + more, max(every))
