"""Cores that this process may use, worker processes that end with it, and interruptible waits."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
ABANDONABLE = "abandonable"  # Name of a thread.


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
    """Blocks signals in the threads and processes started inside this context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def abandonable(work: Callable[[], T]) -> T:
    """Returns `work()`, which runs in a thread so that signal handlers can raise meanwhile.

    Python runs a handler between two of its instructions, and a call of a compiler is a single
    instruction that takes minutes. After an exception of a handler the work goes on by itself.
    """
    result = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name=ABANDONABLE, daemon=True).start()
    return result.result()


def has_abandoned() -> bool:
    """Whether abandoned work still runs, so that Python can't end this process as usual."""
    return any(thread.name == ABANDONABLE for thread in threading.enumerate())
