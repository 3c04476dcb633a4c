"""Imports of libraries that configure logging when they are imported."""

import contextlib
import logging
from collections.abc import Iterator


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
