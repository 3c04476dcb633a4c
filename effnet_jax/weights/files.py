"""Reads any source of weights: its arrays by name, and what it states about them."""

import pathlib
import zipfile
from typing import Any

import numpy as np

from effnet_jax.errors import UserError
from effnet_jax.weights import hub, keras, ours, pth, tf_checkpoint, timm

HDF5 = b"\x89HDF\r\n\x1a\n"
Arrays = dict[str, np.ndarray]
Stated = dict[str, Any]  # A value for each of STATED that the source has.
STATED = ("config", "model", "origin", "preprocess", "classes", "step")


def read(source: str | pathlib.Path, weights: str) -> tuple[Arrays, Stated]:
    """Detects the format of a source from its content, and reads it.

    Args:
      source: as for `weights.load`.
      weights: "ema" or "raw", for sources that have both.

    Raises:
      UserError: it is missing, damaged or of an unknown format, or a package to read it is missing.
    """
    path = pathlib.Path(hub.fetch(source) if str(source).startswith(hub.PREFIX) else source)
    path = path.expanduser().resolve()
    if ours.is_run(path):
        return ours.read_run(path, weights)
    for name in hub.FILES:
        if (path / name).is_file():
            return _read_file(path / name, weights)
    if prefix := tf_checkpoint.find(path):
        return tf_checkpoint.read(prefix), {}
    if path.is_dir():
        raise UserError(
            f"no weights in {path}: it is no workdir of a run, no checkpoint, and has neither "
            f"{' nor '.join(hub.FILES)}"
        )
    if not path.is_file():
        raise UserError(f"no file or folder {path}")
    return _read_file(path, weights)


def _read_file(path: pathlib.Path, weights: str) -> tuple[Arrays, Stated]:
    # Next to a file from the Hub; the config.json of another program states nothing.
    stated = timm.read_config(path.with_name("config.json"))
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    if start[8:] == b"{":  # First: the length before it may be any bytes.
        return _read_safetensors(path, stated)
    if start.startswith(HDF5):
        return keras.read(path), {}
    if start.startswith(b"PK"):
        return _read_zip(path, weights), stated
    if start.startswith(b"\x80"):
        return pth.read(path, weights), stated
    raise UserError(
        f"{path} is no file of weights that is known: .safetensors, .npz, .pth of PyTorch, or .h5 "
        f"of Keras; it starts with {start!r}"
    )


def _read_safetensors(path: pathlib.Path, stated: Stated) -> tuple[Arrays, Stated]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged .safetensors file: {error}") from None
    return arrays, ours.from_metadata(metadata, str(path)) or stated


def _read_zip(path: pathlib.Path, weights: str) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise UserError(f"{path} is a damaged .pth or .npz file: its end is missing") from None
    if not names or not all(name.endswith(".npy") for name in names):
        return pth.read(path, weights)
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # A damaged file raises several kinds of error.
        raise UserError(f"{path} is a damaged .npz file: {error}") from None
