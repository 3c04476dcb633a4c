"""Workdirs: a local folder, or a local copy of a folder in a bucket, gs://BUCKET/FOLDER.

An object in a bucket can only be replaced as a whole, and every request takes tens of milliseconds.
A run therefore works in a local folder, and a thread copies the files that change to the bucket. No
step waits for the bucket, and a bucket that is unreachable for a while gets the files later. Only
checkpoints are written to the bucket directly, by Orbax and TensorStore (checkpoint.py).
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from effnet_jax.errors import RETRY, SaveFailed, UserError
from effnet_jax.run import buckets, files
from effnet_jax.run.buckets import Folder
from effnet_jax.run.writers import say

BEAT = 10.0  # Seconds between two signs of life of a lock's holder.
PATIENCE = 60.0  # Seconds without a sign of life until a lock's holder counts as dead.


class Lock:
    """Holds an object, created only if absent, so that one run at a time works in its folder.

    The object names its owner, which writes it again every BEAT seconds as a sign of life. The lock
    is taken over after PATIENCE seconds without one, or if the owner was a process of this machine
    that has ended. An owner that was suspended meanwhile notices at its next `beat`.
    """

    def __init__(self, folder: Folder, name: str = files.RUN_LOCK):
        self._folder, self._name, self._beats = folder, name, 0
        self._own = {**files.this_process(), "owner": uuid.uuid4().hex}
        self._generation: int | None = None  # Of the object as this owner wrote it last.

    def acquire(self) -> None:
        """Takes the lock; raises UserError, which names the other run, if one holds it."""
        generation = 0
        while not self._write(generation):
            generation = self._wait_for_the_dead()

    def beat(self) -> None:
        """Writes a sign of life; ends the process if another run holds the lock now."""
        if not self._write(self._generation):
            where = self._folder.address
            text = f"error: another run has taken over {where}: this process was silent for more"
            # Anything that this process writes now would mix with the files of the other run.
            print(f"{text} than {PATIENCE:.0f} s", file=sys.stderr, flush=True)
            os._exit(RETRY)

    def beat_if_due(self) -> None:
        if time.monotonic() - self._shown > BEAT:
            self.beat()

    def release(self) -> None:
        if self._generation is not None:
            self._folder.delete([self._name], self._generation)

    def _write(self, generation: int) -> bool:
        self._beats += 1
        text = json.dumps({**self._own, "beat": self._beats}) + "\n"
        written = self._folder.replace(self._name, text, generation)
        if written is None:
            # An earlier try of this request may have succeeded, with its answer lost.
            holder, found = self._read()
            written = found if holder and holder.get("owner") == self._own["owner"] else None
        if written is not None:
            self._generation, self._shown = written, time.monotonic()
        return written is not None

    def _read(self) -> tuple[dict[str, Any] | None, int]:
        try:
            content, generation = self._folder.read(self._name)
        except FileNotFoundError:
            return None, 0
        try:
            holder = json.loads(content)
            return (holder if holder.keys() >= files.HOLDER else None), generation
        except (ValueError, AttributeError):
            return None, generation

    def _wait_for_the_dead(self) -> int:
        """Returns the generation that a dead owner left; raises UserError if it is alive."""
        holder, generation = self._read()
        who = f"process {holder['pid']} on host {holder['host']}" if holder else "an unknown owner"
        if holder and holder["host"] == self._own["host"]:
            alive = files.is_running(holder)
        elif generation:
            where = f"{self._folder.address}/{self._name}"
            say(f"{where} is held by {who}: waiting {PATIENCE:.0f} s to see whether it is alive")
            alive, end = False, time.monotonic() + PATIENCE
            while not alive and time.monotonic() < end:
                time.sleep(min(BEAT, PATIENCE) / 5)
                alive = self._read()[1] not in (generation, 0)
        else:  # The lock was released meanwhile.
            return 0
        if alive:
            raise UserError(
                f"another run ({who}) is running in {self._folder.address}; wait for it, stop it, "
                "or give another --workdir"
            )
        return self._read()[1]


class Workdir:
    """A run's local `folder`, and the `address` that messages and checkpoints use."""

    def __init__(self, folder: pathlib.Path):
        self.folder = self.address = folder

    def flush(self) -> None:
        """Copies changed files to `address`; raises OSError."""


class Mirror(Workdir):
    """A local copy of a folder in a bucket; changes are copied back to the bucket."""

    def __init__(self, address: str | os.PathLike, writes: bool = True, locks: bool = False):
        """Raises UserError if the bucket can't be used; changes are copied only if `writes`."""
        self._remote, self.address = Folder(address), buckets.to_path(address)
        if len(self.address.parts) < 4:  # /, gs, the bucket.
            raise UserError(f"{address} is a whole bucket: give a folder, as in {address}/b0")
        self._root = pathlib.Path(tempfile.mkdtemp(prefix="effnet_jax_"))
        self.folder = self._root / self.address.name
        self.folder.mkdir()
        self._lock = Lock(self._remote) if writes and locks else None
        self._copied: dict[str, tuple[int, int]] = {}
        self._copying, self._ended, self._failed = threading.Lock(), threading.Event(), False
        try:
            if self._lock:
                self._lock.acquire()
            names = [name for name in self._remote.names() if name != files.RUN_LOCK]
            self._remote.download(names, self.folder)
        except OSError as error:
            self._give_up()
            raise UserError(f"can't use {self.address}: {buckets.with_remedy(error)}") from None
        except BaseException:
            self._give_up()
            raise
        self._copied = self._states()
        self._thread = threading.Thread(target=self._keep_copying, name="bucket", daemon=True)
        if writes:
            self._thread.start()

    def close(self, failed: bool = False) -> None:
        """Copies the last changes and removes the local folder.

        If that fails it raises SaveFailed or, if an error is being raised already (`failed`), only
        prints.
        """
        self._ended.set()
        error = None
        if self._thread.ident:
            self._thread.join()
            try:
                self.flush()
                if self._lock:
                    self._lock.release()
            except OSError as lost:
                error = f"can't write to {self.address}: {lost.strerror}"
        if error is None:
            self._clean_up()
            return
        error += f". The newest files are in {self.folder}; copy them to {self.address} yourself"
        if not failed:
            raise SaveFailed(error)
        print(error, file=sys.stderr)

    def flush(self) -> None:
        with self._copying:
            if self._lock:
                self._lock.beat()
            states = self._states()
            for name in [name for name in states if self._copied.get(name) != states[name]]:
                if self._lock:
                    self._lock.beat_if_due()
                with contextlib.suppress(FileNotFoundError):  # The file was renamed meanwhile.
                    self._remote.write(name, (self.folder / name).read_bytes())
                    self._copied[name] = states[name]

    def _states(self) -> dict[str, tuple[int, int]]:
        """The time and the size of each file, by name."""
        states = {}
        for path in sorted(self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.is_file() and ".tmp" not in path.name:
                    name = path.relative_to(self.folder).as_posix()
                    states[name] = stat.st_mtime_ns, stat.st_size
        return states

    def _keep_copying(self) -> None:
        pause = BEAT / 2
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self.flush()
                if self._failed:
                    say(f"{self.address} can be written to again")
                self._failed = False
            except OSError as error:
                if not self._failed:
                    say(f"can't write to {self.address}: {error.strerror}. The run goes on")
                self._failed = True
            # A slow bucket gets files less often, but still gets signs of life in time.
            pause = min(max(BEAT / 2, time.monotonic() - began), BEAT)

    def _give_up(self) -> None:
        if self._lock:
            with contextlib.suppress(OSError):
                self._lock.release()
        self._clean_up()

    def _clean_up(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


@contextlib.contextmanager
def opened(
    workdir: str | os.PathLike, writes: bool = True, locks: bool = False
) -> Iterator[Workdir]:
    """A workdir, local or in a bucket; see `Mirror`. The caller locks a local one."""
    if not buckets.is_bucket(workdir):
        yield Workdir(pathlib.Path(workdir).expanduser())
        return
    mirror, failed = Mirror(workdir, writes, locks), True
    try:
        yield mirror
        failed = False
    finally:
        mirror.close(failed)
