"""The cores that this process may use, and workers that end with it."""

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


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises KeyboardInterrupt; where that was lost, the next call of what is given does.

    It is lost where it is raised in a callback of the garbage collector, as JAX has one; that alone
    Python would print, with its traceback. Outside the main thread, which alone may listen, nothing
    is changed.
    """
    came = threading.Event()

    def note(*_: object) -> None:
        came.set()
        raise KeyboardInterrupt

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return

    def report(lost: Any) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            printed(lost)

    before, printed = signal.signal(signal.SIGINT, note), sys.unraisablehook
    sys.unraisablehook = report
    try:
        yield check
    finally:
        sys.unraisablehook = printed
        signal.signal(signal.SIGINT, before)
