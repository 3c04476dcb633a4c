"""The cores that this process may use, and worker processes that end with it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


def available_cores() -> list[int]:
    """The cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def end_with_parent() -> None:
    """Makes a worker process end when its parent does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Blocks signals in the threads and processes started inside, from their first instruction."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[Callable[[], None]]:
    """Yields a function that raises the KeyboardInterrupt of a Ctrl-C that was lost before.

    Python discards, and reports, what is raised in callbacks of the garbage collector, as JAX's.
    """
    lost, before = threading.Event(), sys.unraisablehook

    def note(discarded: Any) -> None:
        if isinstance(discarded.exc_value, KeyboardInterrupt):
            lost.set()
        else:
            before(discarded)

    def check() -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    sys.unraisablehook = note
    try:
        yield check
    finally:
        sys.unraisablehook = before
