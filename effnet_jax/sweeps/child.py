"""The start of a run: python child.py CORES COMMAND...

Takes its cores, asks for SIGTERM when the sweep dies, and becomes the command. This needs a process
of its own, because a process with threads, as JAX's, can't safely do it between fork and exec.
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
    if sys.platform == "linux":  # The run then saves and stops; elsewhere it continues.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:  # The sweep died before that.
            sys.exit(f"the sweep is gone; not starting {command}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
