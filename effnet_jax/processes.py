"""The cores that this process may use, and workers that end with it."""

import multiprocessing
import os
import signal
import threading


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
