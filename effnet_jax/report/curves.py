"""The picture of a run: loss and accuracy by epoch."""

import pathlib

import matplotlib.figure


def draw_curves(rows: list[dict[str, float]], path: pathlib.Path) -> None:
    """Draws the rows of metrics.jsonl into a PNG: training, and every evaluation by its name."""
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    names = dict.fromkeys(key for row in rows for key in row if key.count("/") == 2)
    for axes, metric, scale in ((loss, "loss", 1), (accuracy, "top1", 100)):
        smoothed = ", smoothed labels" if metric == "loss" else ""
        lines = {f"train_{metric}": {"label": f"training (augmented{smoothed})", "color": "gray"}}
        for name in names:
            evaluation, _, measured = name.rpartition("/")
            if measured == metric:
                lines[name] = {"label": f"evaluation {evaluation}", "marker": "o"}
        for key, form in lines.items():
            points = [(row["epoch"], scale * row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), **form)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set_ylabel("cross-entropy")
    accuracy.set_ylabel("top-1 (%)")
    figure.savefig(path, dpi=120)
