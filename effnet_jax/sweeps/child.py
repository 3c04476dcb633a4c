"""The first thing a run of a sweep is: python child.py CORES COMMAND...

Takes its cores, asks to be told where the sweep dies, and becomes the command. A file of its own,
because what JAX has started in the sweep doesn't allow for this between fork and exec.
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
    if sys.platform == "linux":  # train.py then saves and stops; elsewhere it goes on alone.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:  # It died before.
            sys.exit(f"the sweep is gone; not starting {command}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
