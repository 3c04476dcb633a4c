"""One run at a time in a workdir."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any

import jax
import psutil

from effnet_jax.errors import UserError
from effnet_jax.run.writers import say

NAME = "run.lock"
BEAT = 5.0  # Seconds between two signs of life, ...
PATIENCE = 30.0  # ... and without one until a run on another host counts as dead.


class WorkdirLock:
    """As a context, keeps other runs out of a workdir.

    On one host the kernel keeps the lock, and drops it when the process ends, however it ends. On
    other hosts, whose file system may not share locks, a number in the file that grows shows that
    the run lives. The file stays; it is empty where nobody runs. Of a run on many hosts, the first
    process alone takes it.

    Raises:
      UserError: another run has the workdir; names its host and process.
    """

    def __init__(self, workdir: str | pathlib.Path):
        self._path = pathlib.Path(workdir) / NAME
        self._ended = threading.Event()

    def __enter__(self) -> "WorkdirLock":
        if jax.process_index() != 0:
            return self
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"can't write to {self._path}: {error.strerror}") from None
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_index() != 0:
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # The disk is gone, and the lock with it.
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise self._refusal(self._read()) from None
        except OSError:  # This file system has no locks.
            locked = False
        holder = self._read()
        if holder and self._is_alive(holder, locked):
            raise self._refusal(holder)
        started = psutil.Process().create_time()
        self._own = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        try:
            os.ftruncate(self._file, 0)
            self._write(0)
        except OSError as error:
            raise UserError(f"can't write to {self._path}: {error.strerror}") from None

    def _is_alive(self, holder: dict[str, Any], locked: bool) -> bool:
        if holder["host"] == socket.gethostname():
            if locked:
                return False  # It would have the lock.
            try:
                return psutil.Process(holder["pid"]).create_time() == holder["started"]
            except psutil.Error:
                return False
        # Clocks of two hosts differ, so what is watched is that the number grows.
        say(
            f"{self._path} is of process {holder['pid']} on {holder['host']}: waiting up to "
            f"{PATIENCE:.0f} s to see whether it lives"
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(BEAT, PATIENCE) / 5)
            now = self._read()
            if not now:
                return False
            if now != holder:
                return True
        return False

    def _refusal(self, holder: dict[str, Any] | None) -> UserError:
        who = f"process {holder['pid']} on host {holder['host']}" if holder else "another process"
        return UserError(
            f"{who} is running in {self._path.parent}; give another --workdir, or end that run"
        )

    def _read(self) -> dict[str, Any] | None:
        """Opened anew, because a network file system may else show what it read before."""
        try:
            holder = json.loads(self._path.read_text())
            return holder if {"host", "pid", "started", "beat"} <= holder.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _write(self, beat: int) -> None:
        # Always as long, and in the same place: a full disk takes it, and it is never half there.
        text = json.dumps({**self._own, "beat": f"{beat:012}"}) + "\n"
        os.pwrite(self._file, text.encode(), 0)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # On this host the kernel's lock holds all the same.
                self._write(beat)
