"""The paper's printed figures, and timm's; README.md has sources and misprints."""

import csv
import pathlib

FOLDER = pathlib.Path(__file__).parent


def read(name: str) -> list[dict[str, str]]:
    """The rows of a table by its file's name, say "table2", as printed; what isn't stated is ""."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))
