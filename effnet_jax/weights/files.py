"""A source of weights, whatever it is: arrays by name, and what is said of them beside."""

import pathlib
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from effnet_jax.errors import UserError
from effnet_jax.weights import hub, keras, ours, pth, tf_checkpoint, timm
from effnet_jax.weights.names import Shapes
from effnet_jax.weights.ours import Facts

HDF5 = b"\x89HDF\r\n\x1a\n"
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # As repositories on the Hub call them.


class Content(NamedTuple):
    """What is in a source.

    Attributes:
      shapes: by the name in the source.
      read: gives the array of a name.
      facts: what the source says of itself.
    """

    shapes: Shapes
    read: Callable[[str], np.ndarray]
    facts: Facts


def _of_arrays(arrays: dict[str, np.ndarray], facts: Facts) -> Content:
    return Content({name: array.shape for name, array in arrays.items()}, arrays.get, facts)


def open_source(source: str | pathlib.Path, weights: str) -> Content:
    """Finds out what a source is, by its content and not by its name, and opens it.

    Args:
      source: a file of weights; a workdir of a run, or a checkpoint in there; a TensorFlow
        checkpoint, by its prefix, its folder or one of its files; a folder with a file as of the
        Hub; or hf://ORG/NAME.
      weights: "ema" or "raw": which to take where there are both.

    Raises:
      UserError: it is missing, damaged, foreign, or what reads it isn't installed.
    """
    path = pathlib.Path(hub.fetch(source) if str(source).startswith(hub.PREFIX) else source)
    path = path.expanduser().resolve()
    if path.is_dir() and (found := ours.find(path)):
        return _of_arrays(*ours.read_workdir(*found, weights))
    for name in IN_FOLDER:
        if (path / name).is_file():
            return _open_file(path / name, weights)
    if prefix := tf_checkpoint.find(path):
        return Content(*tf_checkpoint.read(prefix), Facts())
    if path.is_dir():
        raise UserError(
            f"no weights in {path}: it is no workdir of a run, no TensorFlow checkpoint, and has "
            f"neither {IN_FOLDER[0]} nor {IN_FOLDER[1]}"
        )
    if not path.is_file():
        raise UserError(f"no file or folder {path}")
    return _open_file(path, weights)


def _open_file(path: pathlib.Path, weights: str) -> Content:
    # Beside a file from the Hub; another program's, or a run's, says nothing here.
    facts = timm.read_config(path.with_name("config.json")) or Facts()
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    if start[8:] == b"{":  # First: the length before it may be any bytes.
        return _open_safetensors(path, facts)
    if start.startswith(HDF5):
        return Content(*keras.read(path), Facts())
    if start.startswith(b"PK"):
        if _is_npz(path):
            return _of_arrays(_read_npz(path), facts)
        return _of_arrays(pth.read(path, weights), facts)
    if start.startswith(b"\x80"):
        return _of_arrays(pth.read(path, weights), facts)
    raise UserError(
        f"{path} is no file of weights that is known: .safetensors, .npz, .pth of PyTorch, or .h5 "
        f"of Keras; it starts with {start!r}"
    )


def _open_safetensors(path: pathlib.Path, facts: Facts) -> Content:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged .safetensors file: {error}") from None
    own = ours.from_metadata(file.metadata() or {}, str(path))
    return Content(shapes, file.get_tensor, own or facts)


def _is_npz(path: pathlib.Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise UserError(f"{path} is a damaged .pth or .npz file: its end is missing") from None
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # Damage shows as any of several kinds of error.
        raise UserError(f"{path} is a damaged .npz file: {error}") from None
