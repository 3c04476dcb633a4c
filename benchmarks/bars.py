"""The end of a benchmark that has bars to meet."""

from collections.abc import Sequence

from effnet_jax.run.writers import say


def report(missed: Sequence[str]) -> int:
    """Prints the bars that were missed; returns the exit status, 0 if there are none."""
    for line in missed:
        say(f"missed: {line}")
    return 1 if missed else 0
