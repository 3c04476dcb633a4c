"""The cores that this process may use, and workers that end with it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


def available_cores() -> list[int]:
    """The cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def end_with_parent(*ignored: signal.Signals) -> None:
    """Called in a worker process: its parent's end is its own, and the `ignored` its parent's."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Threads and processes that are started inside never get these signals, not even at first.

    A process that sets them aside itself can be killed by one before it has come to that.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
