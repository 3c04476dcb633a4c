"""Workdirs: a local folder, or the copy of one in a bucket, gs://BUCKET/FOLDER.

An object in a bucket is replaced as a whole, and every request takes tens of milliseconds. A run
therefore works in a local folder, and one thread copies the files that changed to the bucket: no
step waits for a bucket, and one that is away for a while gets the files later. Checkpoints alone
are written to the bucket directly, by Orbax and TensorStore (checkpoint.py).
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
PATIENCE = 60.0  # Seconds without a sign of life after which a lock's holder counts as dead.


class Lock:
    """Holds an object, created only if absent, so that one run at a time works in its folder.

    The object names its owner, who writes it again as a sign of life every BEAT seconds. Where none
    came for PATIENCE seconds, or the owner was a process of this machine that has ended, the lock
    is taken over. An owner that was asleep meanwhile notices at its next `beat`.
    """

    def __init__(self, folder: Folder, name: str = files.RUN_LOCK):
        self._folder, self._name, self._beats = folder, name, 0
        self._own = {**files.this_process(), "owner": uuid.uuid4().hex}
        self._generation: int | None = None  # Of the object that this owner wrote last.

    def acquire(self) -> None:
        """Raises UserError where another run, which it names, holds the lock."""
        generation = 0
        while not self._write(generation):
            generation = self._wait_for_the_dead()

    def beat(self) -> None:
        """Shows life; ends the process if another run holds the lock now."""
        if not self._write(self._generation):
            where = self._folder.address
            text = f"error: another run has taken over {where}: this process was silent for more"
            # Whatever this process would write now would mix with what the other one writes.
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
            # Perhaps a request that was tried again had been answered, and the answer lost.
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
        """Returns the generation that a dead owner left; raises UserError where it is alive."""
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
        else:  # It was released in the meantime.
            return 0
        if alive:
            raise UserError(
                f"another run ({who}) is running in {self._folder.address}; wait for it, stop it, "
                "or give another --workdir"
            )
        return self._read()[1]


class Workdir:
    """Where a run's files are: `folder` on this machine, `address` for people and checkpoints."""

    def __init__(self, folder: pathlib.Path):
        self.folder = self.address = folder

    def flush(self) -> None:
        """Returns when the files are also at `address`; raises OSError."""


class Mirror(Workdir):
    """A local folder, with the files of a folder in a bucket, to which changes are copied."""

    def __init__(self, address: str | os.PathLike, writes: bool = True, locks: bool = False):
        """Raises UserError if the bucket can't be used; `writes`: copies what changes to it."""
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
        """Copies what is left, and removes the local folder; `failed`: an error is on its way."""
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
                with contextlib.suppress(FileNotFoundError):  # It was renamed meanwhile.
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
            # A slow bucket gets files less often, but signs of life in time.
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
    """A workdir, local or in a bucket; see `Mirror`. A local one is locked by its user."""
    if not buckets.is_bucket(workdir):
        yield Workdir(pathlib.Path(workdir).expanduser())
        return
    mirror, failed = Mirror(workdir, writes, locks), True
    try:
        yield mirror
        failed = False
    finally:
        mirror.close(failed)
