"""Reads any source of weights: its arrays by name, and the facts that it states about them."""

import json
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np

from effnet_jax.errors import UserError, check_choice
from effnet_jax.run import buckets
from effnet_jax.run.files import left_by_download
from effnet_jax.weights import hub, keras, ours, pth, tf_checkpoint, timm, torchvision
from effnet_jax.weights.names import WHICH

HDF5 = b"\x89HDF\r\n\x1a\n"
INDEX = ".safetensors.index.json"  # Lists the shards of one set of weights.
Arrays = dict[str, np.ndarray]
Stated = dict[str, Any]  # A value for each of STATED that the source has.
STATED = ("config", "model", "origin", "preprocess", "classes", "step")


def read(source: str | pathlib.Path, weights: str) -> tuple[Arrays, Stated]:
    """Detects the format of a source from its content, and reads it.

    Args:
      source: as for `weights.load`.
      weights: "ema" or "raw", for sources that have both; or a key in a PyTorch file.

    Raises:
      UserError: the source is missing, damaged or of an unknown format, or needs a package that is
        not installed.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"weights come from a path or hf://ORG/NAME, not {type(source).__name__}")
    is_hub = str(source).startswith(hub.PREFIX)
    if buckets.is_bucket(source):
        address = buckets.to_path(source)
        if ours.is_run(address):
            return ours.read_run(address, weights)
        with buckets.fetched(address) as local:
            return read(local, weights)
    if not is_hub and re.match(r"\w{2,}://", str(source)):
        raise UserError(f"{source} is a URL; download the file, or give hf://ORG/NAME")
    path = pathlib.Path(hub.fetch(source) if is_hub else source)
    # Links are resolved only for runs: in the Hub's cache they lead to files with other names.
    path = pathlib.Path(os.path.abspath(path.expanduser()))
    if shard := re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.safetensors", path.name):
        path = path.with_name(shard[1] + INDEX)
    if ours.is_run(path.resolve()):
        return ours.read_run(path.resolve(), weights)
    for name in hub.FILES:
        if (path / name).is_file():
            return _read_file(path / name, weights)
    if prefix := tf_checkpoint.find(path):
        return tf_checkpoint.read(prefix), {}
    if path.is_dir():
        raise UserError(
            f"no weights in {path}: it is not a run's workdir or a checkpoint, and has neither "
            f"{' nor '.join(hub.FILES)}"
        )
    if not path.is_file():
        raise UserError(f"no file or folder {path}")
    return _read_file(path, weights)


def _read_file(path: pathlib.Path, weights: str) -> tuple[Arrays, Stated]:
    # The Hub has it next to the weights; the config.json of another program states nothing.
    stated = timm.read_config(path.with_name("config.json"))
    own = timm.by_name(re.sub(r"\.(safetensors|bin|pth|pt)$", "", path.name))
    if own and stated and any(own[key] != stated[key] for key in ("model", "origin")):
        stated = {}  # By the file's name, config.json belongs to another download.
    stated = stated or torchvision.by_file(path.name)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    if meaning := left_by_download(start):
        raise UserError(f"{path} is {meaning}")
    if not start.startswith((b"PK", b"\x80")):
        check_choice("weights", weights, WHICH)
    if path.name.endswith(INDEX):
        return _read_shards(path, stated)
    if start[8:9] == b"{":  # Checked first: the eight bytes of length may look like another format.
        return _read_safetensors(path, stated)
    if start.startswith(HDF5):
        return keras.read(path), {}
    if start.startswith(b"PK"):
        return _read_zip(path, weights), stated
    if start.startswith(b"\x80"):
        return pth.read(path, weights), stated
    if path.suffix in (".onnx", ".stablehlo"):
        raise UserError(f"{path} is an exported network, which only predict runs; give weights")
    raise UserError(
        f"{path} is not a known format of weights (.safetensors, .npz, .pth of PyTorch, or .h5 of "
        f"Keras); it starts with {start[:9]!r}"
    )


def _read_shards(index: pathlib.Path, stated: Stated) -> tuple[Arrays, Stated]:
    """Reads the arrays of all files that an index lists; the files are next to it."""
    try:
        shards = json.loads(index.read_text())["weight_map"]
        names = sorted({pathlib.PurePath(name).name for name in shards.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of .safetensors files: {error!r}") from None
    if missing := [name for name in names if not index.with_name(name).is_file()]:
        raise UserError(f"{index} lists files that are not next to it: {', '.join(missing)}")
    found = {name: _read_safetensors(index.with_name(name), stated)[0] for name in names}
    places = {array: name for name, arrays in found.items() for array in arrays}
    if places != shards or sum(map(len, found.values())) != len(shards):
        wrong = sorted(name for name in places | shards if places.get(name) != shards.get(name))
        raise UserError(f"{index} and its files disagree about the arrays {', '.join(wrong[:8])}")
    return {name: array for arrays in found.values() for name, array in arrays.items()}, stated


def _read_safetensors(path: pathlib.Path, stated: Stated) -> tuple[Arrays, Stated]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged .safetensors file: {error}") from None
    except AttributeError as error:  # NumPy lacks the dtype, such as float8_e4m3fn.
        raise UserError(f"{path} has a dtype that can't be read: {error}") from None
    if _ends_in_zeros(path):
        raise UserError(f"{path} ends in zeros, like an incomplete download; download it again")
    return arrays, ours.from_metadata(metadata, str(path)) or stated


def _ends_in_zeros(path: pathlib.Path, size: int = 1024) -> bool:
    """Whether the last `size` bytes are 0; in all formats the last array is a kernel or a scale."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return not any(file.read())


def _read_zip(path: pathlib.Path, weights: str) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise UserError(f"{path} is a damaged .pth or .npz file: its end is missing") from None
    if "model.weights.h5" in names:
        raise UserError(f"{path} is a .keras file. {keras.UNNAMED}")
    if not names or not all(name.endswith(".npy") for name in names):
        return pth.read(path, weights)
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # A damaged file raises several kinds of error.
        raise UserError(f"{path} is a damaged .npz file: {error}") from None
