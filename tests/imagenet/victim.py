"""A process that prepares and is killed; a module of its own, which a fork server can import."""

import os
import signal
import sys

from effnet_jax.imagenet import prepare, shards

EVENTS = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def run(source, data_dir, began, processes, events, last_event) -> None:
    """Prepares in a process group of its own, and counts what it does to files in `data_dir`.

    Kills itself just before `last_event`, if that is above 0.
    """
    os.setsid()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process.

    def count(event: str, arguments: tuple) -> None:
        if event in EVENTS and str(data_dir) in str(arguments):
            events.value += 1
            if events.value == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    began.set()
    prepare.prepare(source, data_dir, shards.Settings(), subset=True, processes=processes)
