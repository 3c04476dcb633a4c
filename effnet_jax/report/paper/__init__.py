"""The paper's printed figures, and timm's; README.md has sources and misprints."""

import csv
import pathlib
from collections.abc import Container

FOLDER = pathlib.Path(__file__).parent


def read(name: str) -> list[dict[str, str]]:
    """The rows of a table by its file's name, say "table2", as printed; what isn't stated is ""."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def published() -> dict[str, dict[str, str]]:
    """Printed parameters (params_M) and multiply-adds (flops_B) of every EfficientNet, by name."""
    table2 = (row for row in read("table2") if row["model"].startswith("EfficientNet"))
    found = {row["model"][-2:].lower(): row for row in table2}
    return found | {row["model"]: row for row in read("families")}


def differences(names: Container[str]) -> list[str]:
    """Why printed figures of these models are not what is counted: a line for each reason."""
    lines = []
    for row in read("differences"):
        concerned = [name for name in row["models"].split() if name in names]
        if concerned:
            lines.append(f"{', '.join(concerned)}: {row['note']}")
    return lines
