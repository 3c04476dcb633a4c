"""Numbers printed in the paper and published by others; README.md lists sources and misprints."""

import csv
import pathlib
import re
from collections.abc import Container, Sequence

from effnet_jax import models, scaling
from effnet_jax.models.efficientnet import VARIANTS

FOLDER = pathlib.Path(__file__).parent


def read(name: str) -> list[dict[str, str]]:
    """The rows of the table NAME.csv, for example "table2", as printed; "" for unstated numbers."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def transfer() -> dict[str, dict[str, str]]:
    """The rows of transfer.csv, one for each data set of Table 5, by the paper's name for it."""
    return {row["dataset"]: row for row in read("transfer")}


def published() -> dict[str, dict[str, str]]:
    """Published parameters (params_M) and multiply-adds (flops_B) of each EfficientNet by name."""
    table2 = (row for row in read("table2") if row["model"].startswith("EfficientNet"))
    found = {row["model"][-2:].lower(): row for row in table2}
    return found | {row["model"]: row for row in read("families")}


def released(names: Sequence[str], data: str, resolution: int | None = None) -> dict[str, str]:
    """The row of released.csv for released weights; an empty dict if there is none.

    Args:
      names: possible names of the weights; the first that has a row is used.
      data: the name of a data set in configs/evaluation.
      resolution: of the images; rows for other resolutions are ignored. None accepts any.
    """
    rows = [row for row in read("released") if row["set"] == data and row["name"] in names]
    if resolution is not None:
        rows = [row for row in rows if row["resolution"] in ("", str(resolution))]
    return min(rows, key=lambda row: names.index(row["name"]), default={})


def load_options(names: Sequence[str]) -> dict[str, str | int]:
    """The argument that `weights.load` needs for released weights with one of `names`, or {}."""
    key, _, value = released(names, "imagenet").get("load", "").partition("=")
    return {key: int(value) if value.isdecimal() else value} if key else {}


def label(base: str, width: float, depth: float, resolution: int) -> str:
    """The name of a network, for example "b0", or its base and coefficients if it has none."""
    scale = round(width, 6), round(depth, 6)
    named = (name for name, v in VARIANTS.items() if (v.base, v.width, v.depth) == (base, *scale))
    return next(named, f"{base},w={width:g},d={depth:g},r={resolution}")


def identify(
    width: float, depth: float, resolution: int, parameters: int, classes: int
) -> tuple[str, scaling.Cost] | None:
    """The base that has this number of parameters when scaled, and its cost; None if unknown."""
    coefficients = scaling.Coefficients(width, depth, resolution)
    for base in dict.fromkeys(variant.base for variant in VARIANTS.values()):
        layers = models.base(base).architecture(coefficients, classes).layers()
        if (cost := scaling.cost(layers)).parameters == parameters:
            return base, cost
    return None


def differences(names: Container[str]) -> list[str]:
    """Why printed numbers of these models differ from counted ones: a line for each reason."""
    lines = []
    for row in read("differences"):
        if concerned := [name for name in row["models"].split() if name in names]:
            lines.append(f"{', '.join(concerned)}: {row['note']}")
    return lines


def counted(base: str, width: float, depth: float, resolution: int) -> scaling.Cost:
    """The cost of a scaled base network with 1000 classes, summed over its layers."""
    coefficients = scaling.Coefficients(width, depth, resolution)
    return scaling.cost(models.base(base).architecture(coefficients).layers())


def is_imagenet(data: str) -> bool:
    """Whether `data` is ImageNet's validation set, so that accuracies compare with the paper's."""
    return bool(re.fullmatch(r"(imagenet2012|imagenet)/(validation|val)( \[\w+\])?", data))
