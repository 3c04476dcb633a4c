"""Rows of the CSV files under results/."""

import csv
import pathlib
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.run import environment


def describe_machine() -> dict[str, Any]:
    """`environment.describe_run` in the flat columns that rows end with."""
    run = environment.describe_run()
    columns = ("jax", "jaxlib", "device", "devices", "cpus", "python", "commit", "time")
    return {key: (run | run["versions"])[key] for key in columns}


def append_csv(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a results file; a new file gets a header first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", newline="") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
            if header not in (None, list(rows[0])):
                raise UserError(f"{path} has other columns than these rows; choose another --csv")
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if header is None:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"can't write to --csv={path}: {error.strerror}; rows: {rows}") from None
