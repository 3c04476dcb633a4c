"""Start a run of a sweep: python child.py CORES COMMAND...

Restricts this process to CORES, requests SIGTERM when the sweep dies, and executes the command. A
sweep has threads, as any process that uses JAX, and can't safely do this between fork and exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    cores, *command = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    if sys.platform == "linux":  # On SIGTERM the run saves and stops; elsewhere it continues.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:  # The sweep died before the call of prctl.
            sys.exit(f"the sweep has ended; not starting {command}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
