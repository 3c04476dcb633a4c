"""Files that people and other programs read: locks, and writes that leave no half-written file."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import tempfile
import threading
import time
from typing import Any

import psutil

from effnet_jax.errors import UserError
from effnet_jax.run import buckets

RUN_LOCK = "run.lock"  # In the workdir of a run.
BEAT = 5.0  # Seconds between two signs of life of a lock's holder.
HOLDER = {"host", "pid", "started", "beat"}  # Keys of a lock file.
PATIENCE = 30.0  # Seconds without a sign of life until a holder on another machine counts as dead.


# What a failed download leaves instead of a file, by its first bytes in lower case.
LEFT = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run git lfs pull",
    b"<!doctype html": "a web page, such as an error or a login; download the file itself",
    b"<html": "a web page, such as an error or a login; download the file itself",
}


def left_by_download(start: bytes) -> str | None:
    """The entry of LEFT for a file that begins with `start` (64 bytes are enough), or None."""
    start = start.lstrip().lower()
    return next((meaning for first, meaning in LEFT.items() if start.startswith(first)), None)


def cache_folder(name: str) -> pathlib.Path:
    """This user's folder for files that can be made again, by default ~/.cache/effnet_jax/NAME."""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return pathlib.Path(home, "effnet_jax", name)


def check_local(what: str, path: str | pathlib.Path) -> None:
    """Raises UserError, which names `what`, for an address like gs://BUCKET/FOLDER."""
    # A pathlib.Path drops the second slash.
    if address := re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*:)//?(.*)", str(path)):
        raise UserError(
            f"{what}={'//'.join(address.groups())} is not a local path: these files can't be in a "
            "bucket. Mount the bucket, for instance with gcsfuse, or copy the files"
        )


def make_folder(what: str, folder: pathlib.Path) -> None:
    """Makes a folder; raises UserError, which names `what`, if no file can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"can't write to {what}={folder}: {error.strerror}") from None


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, without lines that a crash cut short; none if there is no file."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never half a file."""
    if buckets.is_bucket(path):
        buckets.write(path, text)
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def append_whole(path: pathlib.Path, text: str) -> None:
    """Appends all of a text, or nothing if it raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            data = text.encode()
            while data:
                data = data[file.write(data) :]
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file, local or in a bucket; raises OSError."""
    return buckets.read(path) if buckets.is_bucket(path) else path.read_bytes()


def is_file(path: pathlib.Path) -> bool:
    """Whether a file exists, local or in a bucket."""
    return buckets.exists(path) if buckets.is_bucket(path) else path.is_file()


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file, local or in a bucket."""
    return json.loads(read_bytes(path))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


class Lock:
    """Holds a lock file as a context, so that one process at a time works in the file's folder.

    On one machine the kernel keeps the lock, and releases it however the process ends. Machines may
    not share a file system's locks, so the holder also writes a growing number to the file as a
    sign of life. A holder removes the file at its end; one that is killed leaves the file behind.

    A child process that inherits `descriptor`, as with `subprocess.Popen(pass_fds=[descriptor])`,
    holds the lock too: after its parent was killed, the next Lock waits until the child ends.

    Entering raises UserError, which names the other process, if one holds the lock at `path`.
    `what` says what works in the folder, and `remedy` what to do instead of waiting.
    """

    def __init__(
        self, path: pathlib.Path, what: str = "run", remedy: str = "give another --workdir"
    ):
        self._path, self._what, self._remedy = path, what, remedy
        self._ended, self._own = threading.Event(), this_process()

    def __enter__(self) -> "Lock":
        try:
            while not self._open():
                pass
        except OSError as error:
            raise UserError(f"can't write to {self._path}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._show_life, name="lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # If the disk is gone, so is the lock.
            os.ftruncate(self.descriptor, 0)
            if self._is_current():
                self._path.unlink()
        os.close(self.descriptor)

    def _open(self) -> bool:
        """Opens the file and takes the lock; False if the holder has removed the file meanwhile."""
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        taken = False
        try:
            taken = self._take()
        finally:
            if not taken:
                os.close(self.descriptor)
        return taken

    def _is_current(self) -> bool:
        """Whether the open file is the one at the path."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _take(self) -> bool:
        from effnet_jax.run.writers import say  # That module imports this one.

        waits = False
        while (locked := self._try_kernel()) is False:
            holder = self._read()
            if not holder or holder["host"] != self._own["host"] or is_running(holder):
                raise self._refusal(holder)
            if not waits:
                say(f"waiting for the children of a {self._what} that was killed: {self._path}")
            waits = True
            time.sleep(0.2)
        if (holder := self._read()) and holder["host"] != self._own["host"]:
            say(
                f"{self._path} is held by process {holder['pid']} on host {holder['host']}: "
                f"waiting up to {PATIENCE:.0f} s to see whether it is alive"
            )
            alive = self._shows_life(holder)
        else:
            alive = holder and not locked and is_running(holder)
        if alive:
            raise self._refusal(holder)
        if not self._is_current():
            return False
        os.ftruncate(self.descriptor, 0)
        self._write(0)
        return True

    def _try_kernel(self) -> bool | None:
        """Whether the kernel gave the lock; None if the file system has no locks."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if isinstance(error, BlockingIOError) else None
        return True

    def _shows_life(self, holder: dict[str, Any]) -> bool:
        # Clocks of two machines differ, so watch whether the number grows.
        end = time.monotonic() + PATIENCE
        while (now := self._read()) == holder and time.monotonic() < end:
            time.sleep(min(BEAT, PATIENCE) / 5)
        return now is not None and now != holder

    def _refusal(self, holder: dict[str, Any] | None) -> UserError:
        who = f" (process {holder['pid']} on host {holder['host']})" if holder else ""
        return UserError(
            f"another {self._what}{who} is running in {self._path.parent}; wait for it, stop it, "
            f"or {self._remedy}"
        )

    def _read(self) -> dict[str, Any] | None:
        """The holder; opens the file again, because network file systems cache what was read."""
        try:
            holder = read_json(self._path)
            return holder if holder.keys() >= HOLDER else None
        except (OSError, ValueError, AttributeError):
            return None

    def _write(self, beat: int) -> None:
        # Overwriting the same bytes works on a full disk, and no reader sees half of them.
        text = json.dumps({**self._own, "beat": f"{beat:012}"}) + "\n"
        os.pwrite(self.descriptor, text.encode(), 0)

    def _show_life(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # The kernel's lock still holds on this machine.
                self._write(beat)


def this_process() -> dict[str, Any]:
    """The identity of this process in a lock, with its start time: process ids are reused."""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started}


def is_running(holder: dict[str, Any]) -> bool:
    """Whether the process of this machine that `this_process()` described is still running."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(holder["pid"]).create_time() == holder["started"]
    return False
