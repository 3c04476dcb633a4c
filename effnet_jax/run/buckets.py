"""Buckets: addresses like gs://BUCKET/FOLDER, requests to them, and retries.

The library that makes a request retries it with backoff for about a minute if it may succeed later.
A request that still fails raises OSError, as a disk would.
"""

import concurrent.futures
import contextlib
import errno
import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from effnet_jax.errors import UserError

PREFIX = "gs://"
EMULATOR = "STORAGE_EMULATOR_HOST"  # An environment variable that Google's libraries read.
RETRIES = 60.0  # Seconds for which a request that may succeed later is retried, with backoff.
THREADS = 8


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is an address in a bucket."""
    return re.match("gs:/", str(path)) is not None


def to_path(path: str | os.PathLike) -> pathlib.Path:
    """A local path with ~ expanded, or an address in a bucket; both have the methods of pathlib.

    Raises UserError if a package for buckets is missing.
    """
    if not is_bucket(path):
        return pathlib.Path(path).expanduser()
    _import()
    from etils import epath

    return epath.Path(_normal(path))


def _normal(path: str | os.PathLike) -> str:
    return re.sub("^gs:/+", PREFIX, str(path)).rstrip("/")  # A pathlib.Path drops a slash.


def _import() -> Any:
    """Returns google.cloud.storage; sets options that gcsfs and etils read at their first use."""
    try:
        import fsspec
        import gcsfs  # noqa: F401  Etils needs it.
        from google.cloud import storage
    except ImportError as error:
        raise UserError(
            f"{PREFIX} needs a package that is missing ({error.name}): "
            "pip install gcsfs google-cloud-storage"
        ) from None
    os.environ.setdefault("EPATH_USE_TF", "0")  # Else etils would read through TensorFlow.
    # A cached listing would hide what other processes have written.
    options = {"use_listings_cache": False, "requests_timeout": RETRIES}
    if EMULATOR in os.environ:
        options["token"] = "anon"
    fsspec.config.conf.setdefault("gcs", {}).update(options)
    return storage


def errors() -> Any:
    """The types of errors with which a request can fail, as a union."""
    import google.api_core.exceptions
    import google.auth.exceptions
    import requests
    from aiohttp import ClientError
    from gcsfs.retry import HttpError

    api, auth = google.api_core.exceptions.GoogleAPIError, google.auth.exceptions.GoogleAuthError
    return api | auth | requests.RequestException | ClientError | HttpError


@contextlib.contextmanager
def _os_errors(where: str) -> Iterator[None]:
    """Turns the errors of requests into the OSError that a disk would raise."""
    import google.api_core.exceptions as api
    import google.auth.exceptions
    import requests

    try:
        yield
    except api.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, _reason(error), where) from None
    except (api.Forbidden, api.Unauthorized) as error:
        raise PermissionError(errno.EACCES, _reason(error), where) from None
    except google.auth.exceptions.GoogleAuthError as error:
        reason = f"no credentials: {error}. Run gcloud auth application-default login"
        raise PermissionError(errno.EACCES, reason, where) from None
    except (api.GoogleAPIError, requests.RequestException) as error:
        raise OSError(errno.EIO, _reason(error), where) from None


def _reason(error: Exception) -> str:
    """The server's reason, without the request."""
    error = getattr(error, "cause", None) or error  # The last error of a request with retries.
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        response = error.response
        return f"{response.status_code} {response.json()['error']['message']}"
    return str(error).partition("\n")[0][:300]


def _at_once(function: Callable[[str], None], names: Iterable[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(function, names))


@functools.cache
def _client(endpoint: str | None) -> Any:
    return _import().Client()


class Folder:
    """The objects gs://BUCKET/PREFIX/*. Requests are retried, and raise OSError."""

    def __init__(self, address: str | os.PathLike):
        _import()
        from google.cloud.storage import retry

        self.address = _normal(address)
        bucket, _, name = self.address.removeprefix(PREFIX).partition("/")
        if not bucket:
            raise UserError(f"{self.address} should be {PREFIX}BUCKET/FOLDER")
        self._prefix = f"{name}/" if name else ""
        self._retry = retry.DEFAULT_RETRY.with_timeout(RETRIES)
        with _os_errors(self.address):
            self._bucket = _client(os.environ.get(EMULATOR)).bucket(bucket)

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(f"{self._prefix}{name}")

    def names(self, below: str = "", deep: bool = False) -> list[str]:
        """Names of the objects in this folder or its folder `below`; `deep`: also further down."""
        prefix = f"{self._prefix}{below}/" if below else self._prefix
        options = {} if deep else {"delimiter": "/"}
        with _os_errors(self.address):
            found = self._bucket.list_blobs(prefix=prefix, retry=self._retry, **options)
            names = [blob.name.removeprefix(self._prefix) for blob in found]
        return [name for name in names if not name.endswith("/")]  # Some tools make such "folders".

    def has(self, name: str) -> bool:
        """Whether the object exists."""
        with _os_errors(f"{self.address}/{name}"):
            return self._blob(name).exists(retry=self._retry)

    def read(self, name: str) -> tuple[bytes, int]:
        """The content of an object, and its generation: a number that grows with each write."""
        blob = self._blob(name)
        with _os_errors(f"{self.address}/{name}"):
            return blob.download_as_bytes(retry=self._retry), blob.generation

    def download(self, names: list[str], folder: pathlib.Path) -> None:
        """Copies objects to a local folder."""

        def get(name: str) -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with _os_errors(f"{self.address}/{name}"):
                self._blob(name).download_to_filename(str(path), retry=self._retry)

        _at_once(get, names)

    def write(self, name: str, data: bytes | str) -> None:
        """Creates or replaces an object."""
        with _os_errors(f"{self.address}/{name}"):
            self._blob(name).upload_from_string(data, retry=self._retry)

    def replace(self, name: str, text: bytes | str, generation: int) -> int | None:
        """Writes an object only if it has this generation, or with 0 only if there is none.

        Returns the new generation; None if nothing was written.
        """
        import google.api_core.exceptions as api

        blob = self._blob(name)
        with _os_errors(f"{self.address}/{name}"):
            try:
                blob.upload_from_string(text, if_generation_match=generation, retry=self._retry)
            except api.PreconditionFailed:
                return None
        return blob.generation

    def delete(self, names: Iterable[str], generation: int | None = None) -> None:
        """Deletes the objects that exist and, with `generation`, still have it."""
        import google.api_core.exceptions as api

        gone = api.NotFound, api.PreconditionFailed

        def remove(name: str) -> None:
            with _os_errors(f"{self.address}/{name}"), contextlib.suppress(*gone):
                self._blob(name).delete(if_generation_match=generation, retry=self._retry)

        _at_once(remove, names)

    def move(self, names: Iterable[str], to: str) -> None:
        """Moves objects to the folder `to` of this folder."""
        names = list(names)

        def copy(name: str) -> None:
            with _os_errors(f"{self.address}/{name}"):
                new = self._blob(f"{to}/{name}").name
                self._bucket.copy_blob(self._blob(name), self._bucket, new, retry=self._retry)

        _at_once(copy, names)
        self.delete(names)


def exists(path: pathlib.Path) -> bool:
    """Whether an object exists; raises UserError if the bucket can't be read."""
    try:
        return Folder(path.parent).has(path.name)
    except OSError as error:
        raise UserError(f"can't read {path}: {with_remedy(error)}") from None


@contextlib.contextmanager
def fetched(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A local copy of an object or of a folder's files; raises UserError if there is neither."""
    with tempfile.TemporaryDirectory(prefix="effnet_jax_") as local:
        try:
            folder = Folder(path.parent)
            names = [path.name] if folder.has(path.name) else folder.names(path.name)
            folder.download(names, pathlib.Path(local))
        except OSError as error:
            raise UserError(f"can't read {path}: {with_remedy(error)}") from None
        if not names:
            raise UserError(f"no file or folder {path}")
        yield pathlib.Path(local, path.name)


def read(path: pathlib.Path) -> bytes:
    """The content of an object; raises OSError."""
    return Folder(path.parent).read(path.name)[0]


def write(path: pathlib.Path, text: str) -> None:
    """Creates or replaces an object; raises OSError."""
    Folder(path.parent).write(path.name, text)


def update(path: pathlib.Path, change: Callable[[bytes], bytes]) -> int:
    """Replaces an object with `change(content)`, where content is b"" if there is no object.

    If another program writes the object meanwhile, `change` is called again with the newer content.
    Returns the generation of the new object; raises OSError.
    """
    folder, written = Folder(path.parent), None
    while written is None:
        try:
            before, generation = folder.read(path.name)
        except FileNotFoundError:
            before, generation = b"", 0
        written = folder.replace(path.name, change(before), generation)
    return written


def with_remedy(error: OSError) -> str:
    """Why a bucket can't be used, and the remedy."""
    remedy = ""
    if isinstance(error, FileNotFoundError):
        remedy = ". Create the bucket, or correct its name"
    elif isinstance(error, PermissionError) and "credentials" not in str(error.strerror):
        remedy = ". Give the account of this machine the role Storage Object User on the bucket"
    return f"{error.strerror}{remedy}"
