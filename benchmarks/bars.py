"""The report of a benchmark that has limits ("bars") to meet."""

from collections.abc import Sequence

from effnet_jax.run.writers import say


def report(missed: Sequence[str]) -> int:
    """Print the bars that were missed; return the exit status, 0 if there are none."""
    for line in missed:
        say(f"missed: {line}")
    return 1 if missed else 0
