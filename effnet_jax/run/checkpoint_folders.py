"""The folder of a run's checkpoints, on a disk or in a bucket: everything that differs.

On a disk, a checkpoint is a folder that appears by a rename when it is complete. A bucket can't
rename a folder, so a checkpoint in a bucket counts once it has a manifest, which is written last.
"""

import errno
import os
import pathlib
import re
import shutil
import time

from effnet_jax.run import buckets, manifest

DELETED = ".deleted"  # Ends the name of a folder that is being deleted.
SYSTEM_ERROR = r"os_error_code='\d+'"  # In TensorStore's errors.


class OnDisk:
    """The folder WORKDIR/checkpoints, which need not exist."""

    overwrites = False  # Whether a save may find, and has to replace, files of a failed save.

    def __init__(self, path: pathlib.Path):
        self.path = path

    def make_workdir(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Names of checkpoints, complete or not, and of other files."""
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def is_whole(self, name: str) -> bool:
        """Whether a checkpoint is complete."""
        path = self.path / name
        return (path / "_CHECKPOINT_METADATA").is_file() or manifest.exists(path)

    def try_to_write(self) -> int:
        """The errno of creating a folder next to the checkpoints, or 0."""
        path = self.path / f"try{DELETED}"
        try:
            self.path.mkdir(exist_ok=True)
            path.mkdir(exist_ok=True)
            path.rmdir()
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def refused(self, error: Exception) -> bool:
        """Whether an error of a save comes from the disk."""
        if isinstance(error, TimeoutError):  # An OSError, but of a wait for Orbax's threads.
            return False
        return isinstance(error, OSError) or re.search(SYSTEM_ERROR, str(error)) is not None

    def delete(self, name: str) -> None:
        """Turns a checkpoint into leftovers; a half-deleted one must never look complete."""
        os.replace(self.path / name, self.path / f"{name}{DELETED}")

    def remove_leftovers(self, temporary: str) -> None:
        """Removes the rest of deletions and of failed saves, whose names contain `temporary`."""
        for name in self.names():
            if temporary in name or name.endswith(DELETED):
                _remove(self.path / name)

    def move(self, names: list[str], folder: str) -> None:
        """Moves checkpoints to a folder of the workdir, and replaces none there."""
        aside = self.path.parent / folder
        aside.mkdir(exist_ok=True)
        for name in names:
            number = sum(each.name.partition("_")[0] == name for each in aside.iterdir())
            os.replace(self.path / name, aside / f"{name}_{number}")


class InBucket:
    """The objects gs://BUCKET/WORKDIR/checkpoints/*, with the methods of `OnDisk`."""

    overwrites = True

    def __init__(self, path: pathlib.Path):
        self.path = path

    def make_workdir(self) -> None:
        """Buckets have no folders."""

    def names(self) -> list[str]:
        """Names of the checkpoints with a manifest."""
        names = buckets.Folder(self.path).names(deep=True)
        return [name.partition("/")[0] for name in names if _is_manifest(name)]

    def is_whole(self, name: str) -> bool:
        return manifest.exists(self.path / name)

    def try_to_write(self) -> int:
        return 0

    def refused(self, error: Exception) -> bool:
        from fsspec.exceptions import FSTimeoutError

        if isinstance(error, TimeoutError):  # Orbax raises its own from that of a request.
            return isinstance(error.__cause__ or error, FSTimeoutError)
        # The libraries for buckets raise a dozen types of errors; TensorStore's are only text.
        kinds, text = OSError | buckets.errors(), rf"{SYSTEM_ERROR}|gs://|/storage/v1"
        return isinstance(error, kinds) or re.search(text, str(error)) is not None

    def delete(self, name: str) -> None:
        buckets.Folder(self.path / name).delete([manifest.NAME])

    def remove_leftovers(self, temporary: str) -> None:
        folder = buckets.Folder(self.path)
        names = folder.names(deep=True)
        whole = {name.partition("/")[0] for name in names if _is_manifest(name)}
        folder.delete(name for name in names if name.partition("/")[0] not in whole)

    def move(self, names: list[str], folder: str) -> None:
        workdir = buckets.Folder(self.path.parent)
        for name in names:
            objects = workdir.names(f"{self.path.name}/{name}", deep=True)
            workdir.move(sorted(objects, key=_is_manifest), f"{folder}/{time.time():.0f}")


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, to which writes of a failed save may still add files for a moment."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)


def _is_manifest(name: str) -> bool:
    """Whether an object is the manifest of a checkpoint, by its name."""
    return name.endswith(f"/{manifest.NAME}")


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """An absolute path without ~ and symbolic links, or an address in a bucket."""
    path = buckets.to_path(path)
    return path if buckets.is_bucket(path) else path.resolve()


def open_folder(path: pathlib.Path) -> OnDisk | InBucket:
    """The folder of checkpoints at an absolute path."""
    return InBucket(path) if buckets.is_bucket(path) else OnDisk(path)
