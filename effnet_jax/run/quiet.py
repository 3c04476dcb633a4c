"""Libraries without their side effects: log handlers of imports, an exit at a closed pipe."""

import contextlib
import logging
from collections.abc import Iterator

import rich.console


@contextlib.contextmanager
def log_handlers_kept() -> Iterator[None]:
    """Restores the root's log handlers on leaving.

    Importing Orbax, as Grain does, adds one, after which a user's logging.basicConfig does nothing.
    """
    before = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = before


class Console(rich.console.Console):
    """Rich's, which raises BrokenPipeError where nobody reads the output any more."""

    def on_broken_pipe(self) -> None:
        raise
