"""Commands: effnet-jax NAME, or python -m effnet_jax NAME."""

import rich.table

from effnet_jax.run.quiet import Console


def show(table: rich.table.Table) -> None:
    """Prints a table, within the width of a terminal; a pipe or a file gets every cell whole."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table, markup=False)
