"""StableHLO files, serialised by `jax.export`; they run with JAX alone."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

from effnet_jax.errors import UserError
from effnet_jax.run.files import read_json

PLATFORMS = ("cpu", "cuda", "tpu")
FOLDED = False  # `convert` takes a function with BatchNorm as it is.


def check_installed() -> None:
    """Does nothing: JAX is the only package needed."""


def files(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the file and the JSON file with its metadata."""
    return path, path.with_name(f"{path.name}.json")


def convert(
    logits: Callable, images: jax.ShapeDtypeStruct, softmax: bool, metadata: dict[str, Any]
) -> tuple[bytes, ...]:
    """Returns the contents of `files` for a function of images [N, h, w, 3]; N may be symbolic."""

    def function(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(images)) if softmax else logits(images)

    exported = export.export(jax.jit(function), platforms=PLATFORMS)(images)
    return bytes(exported.serialize()), (json.dumps(metadata, indent=2) + "\n").encode()


def read(path: pathlib.Path) -> tuple[dict[str, Any], tuple, np.dtype, Callable]:
    """Returns a file's metadata, the shape and dtype of its images, and its function.

    Raises UserError if the file or its JSON file can't be read.
    """
    path, json_path = files(path)
    try:
        metadata = read_json(json_path)
        exported = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # Damaged files raise several types of error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"can't read {path} with {json_path.name}: {reason}") from None
    (images,) = exported.in_avals
    return metadata, images.shape, images.dtype, jax.jit(exported.call)
