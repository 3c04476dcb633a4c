"""The paper's printed figures, and timm's; README.md has sources and misprints."""

import csv
import pathlib
import re
from collections.abc import Container, Sequence

from effnet_jax import models, scaling
from effnet_jax.models.efficientnet import VARIANTS

FOLDER = pathlib.Path(__file__).parent


def read(name: str) -> list[dict[str, str]]:
    """The rows of a table by its file's name, say "table2", as printed; what isn't stated is ""."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def transfer() -> dict[str, dict[str, str]]:
    """Table 5's data sets by the paper's names: name and split of the test images, classes,
    metric, and the argument of configs/transfer.py.
    """
    return {row["dataset"]: row for row in read("transfer")}


def published() -> dict[str, dict[str, str]]:
    """Printed parameters (params_M) and multiply-adds (flops_B) of every EfficientNet, by name."""
    table2 = (row for row in read("table2") if row["model"].startswith("EfficientNet"))
    found = {row["model"][-2:].lower(): row for row in table2}
    return found | {row["model"]: row for row in read("families")}


def released(names: Sequence[str], data: str, resolution: int | None = None) -> dict[str, str]:
    """What was published of released weights called one of `names`; nothing where that isn't known.

    Args:
      names: of the weights, as in released.csv; the first that is there counts.
      data: the name of a set in configs/evaluation.
      resolution: of the images; the row for another one doesn't count. None: any row.
    """
    rows = [row for row in read("released") if row["set"] == data and row["name"] in names]
    if resolution is not None:
        rows = [row for row in rows if row["resolution"] in ("", str(resolution))]
    return min(rows, key=lambda row: names.index(row["name"]), default={})


def load_options(names: Sequence[str]) -> dict[str, str | int]:
    """What `weights.load` has to be told for released weights called one of `names`."""
    key, _, value = released(names, "imagenet").get("load", "").partition("=")
    return {key: int(value) if value.isdecimal() else value} if key else {}


def label(base: str, width: float, depth: float, resolution: int) -> str:
    """The name of a network, as "b0"; its coefficients where it has none."""
    scale = round(width, 6), round(depth, 6)
    named = (name for name, v in VARIANTS.items() if (v.base, v.width, v.depth) == (base, *scale))
    return next(named, f"{base},w={width:g},d={depth:g},r={resolution}")


def identify(
    width: float, depth: float, resolution: int, parameters: int, classes: int
) -> tuple[str, scaling.Cost] | None:
    """The name of a network's base, and its cost, by its parameters; None for unknown ones."""
    coefficients = scaling.Coefficients(width, depth, resolution)
    for base in dict.fromkeys(variant.base for variant in VARIANTS.values()):
        layers = models.base(base).architecture(coefficients, classes).layers()
        if (cost := scaling.cost(layers)).parameters == parameters:
            return base, cost
    return None


def differences(names: Container[str]) -> list[str]:
    """Why printed figures of these models differ from counted ones: a line for each reason."""
    lines = []
    for row in read("differences"):
        if concerned := [name for name in row["models"].split() if name in names]:
            lines.append(f"{', '.join(concerned)}: {row['note']}")
    return lines


def counted(base: str, width: float, depth: float, resolution: int) -> scaling.Cost:
    """The cost of a scaled base network with 1000 classes, counted layer by layer."""
    coefficients = scaling.Coefficients(width, depth, resolution)
    return scaling.cost(models.base(base).architecture(coefficients).layers())


def is_imagenet(data: str) -> bool:
    """Whether accuracies on `data` are comparable with the paper's: ImageNet's validation set."""
    return bool(re.fullmatch(r"(imagenet2012|imagenet)/(validation|val)( \[\w+\])?", data))
