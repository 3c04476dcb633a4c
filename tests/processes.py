"""Starts the processes of a run over loopback, and leaves none running."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from conftest import ROOT


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Started:
    """As a context: `count` processes of one command, each with `devices` CPU devices.

    Args:
      command: without the interpreter; the three flags of processes are added.
      folder: their outputs go to `output_I` there.
      each: more arguments for one of them, by number.
    """

    def __init__(
        self,
        command: list[str],
        folder: pathlib.Path,
        count: int = 2,
        devices: int = 4,
        each: dict[int, list[str]] | None = None,
    ):
        flags = os.environ["XLA_FLAGS"].split()
        flags = [flag for flag in flags if "device_count" not in flag]
        flags.append(f"--xla_force_host_platform_device_count={devices}")
        self.env = {**os.environ, "XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(ROOT)}
        address = f"--coordinator_address=127.0.0.1:{free_port()}"
        self._outputs = [folder / f"output_{number}" for number in range(count)]
        self.all = []
        for number, path in enumerate(self._outputs):
            place = [address, f"--num_processes={count}", f"--process_id={number}"]
            more = (each or {}).get(number, [])
            with open(path, "w") as file:
                self.all.append(
                    subprocess.Popen(
                        [sys.executable, *command, *place, *more],
                        env=self.env,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            process.kill()  # Also one that was put to sleep.
            process.wait()

    def __getitem__(self, number: int) -> subprocess.Popen:
        return self.all[number]

    def output(self, number: int) -> str:
        return self._outputs[number].read_text()

    def outputs(self) -> str:
        return "\n".join(self.output(number) for number in range(len(self.all)))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it took too long:\n{self.outputs()}"
            assert all(p.poll() is None for p in self.all), self.outputs()
            time.sleep(0.02)

    def finish(self, seconds: float = 240) -> list[int]:
        """Exit codes of all."""
        end = time.monotonic() + seconds
        return [process.wait(max(1, end - time.monotonic())) for process in self.all]
