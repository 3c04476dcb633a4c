"""Removes side effects of libraries: log handlers added by imports, an exit at a closed pipe."""

import contextlib
import logging
from collections.abc import Iterator

import rich.console


@contextlib.contextmanager
def log_handlers_kept() -> Iterator[None]:
    """Restores the root logger's handlers on leaving the context.

    Importing Orbax, as Grain does, adds a handler, which makes a user's logging.basicConfig do
    nothing.
    """
    before = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = before


class Console(rich.console.Console):
    """Rich's console, but it raises BrokenPipeError if nobody reads the output any more."""

    def on_broken_pipe(self) -> None:
        raise
