"""Commands: effnet-jax NAME, or python -m effnet_jax NAME."""

from collections.abc import Iterable

import rich.progress
import rich.table

from effnet_jax.run.quiet import Console


def show(table: rich.table.Table) -> None:
    """Prints a table; it is fitted to the width of a terminal, but not of a pipe or a file."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table, markup=False)


def track(items: Iterable, total: int, what: str) -> Iterable:
    """Iterates over items, with a progress bar on stderr if that is a terminal."""
    console = Console(stderr=True)
    options = {"console": console, "disable": not console.is_terminal, "transient": True}
    return rich.progress.track(items, what, total, **options)
