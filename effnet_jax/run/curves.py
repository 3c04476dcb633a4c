"""The picture of a run: loss and accuracy by epoch."""

import pathlib

import matplotlib.figure

COLOURS = {"train": "#7f7f7f", "raw": "#1f77b4", "ema": "#d62728"}


def draw_curves(rows: list[dict[str, float]], path: pathlib.Path) -> None:
    """Draws the rows of metrics.jsonl into a PNG."""
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axes, metric, scale in ((loss, "loss", 1), (accuracy, "top1", 100)):
        for name, colour in COLOURS.items():
            key = f"{name}_{metric}"
            points = [(row["epoch"], scale * row[key]) for row in rows if key in row]
            if points:
                marker = None if name == "train" else "o"
                label = f"evaluation, {name} weights"
                if name == "train":
                    smoothed = ", smoothed labels" if metric == "loss" else ""
                    label = f"training (augmented{smoothed})"
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set_ylabel("cross-entropy")
    accuracy.set_ylabel("top-1 (%)")
    figure.savefig(path, dpi=120)
