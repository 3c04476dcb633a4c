"""StableHLO files, as `jax.export` serialises them: JAX alone runs them."""

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
FOLDED = False  # Whether the function to convert should have BatchNorm folded.


def check_installed() -> None:
    """JAX is all that is needed."""


def files(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The file itself, and the JSON with what it states."""
    return path, path.with_name(f"{path.name}.json")


def convert(
    logits: Callable, images: jax.ShapeDtypeStruct, softmax: bool, about: dict[str, Any]
) -> tuple[bytes, ...]:
    """The contents of `files`, for a function of images [N, h, w, 3], where N may be symbolic."""

    def function(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(images)) if softmax else logits(images)

    exported = export.export(jax.jit(function), platforms=PLATFORMS)(images)
    return bytes(exported.serialize()), (json.dumps(about, indent=2) + "\n").encode()


def read(path: pathlib.Path) -> tuple[dict[str, Any], tuple, np.dtype, Callable]:
    """What a file states, the shape and dtype of its images, and the function of them.

    Raises UserError where the file, or the one next to it, can't be read.
    """
    path, beside = files(path)
    try:
        about = read_json(beside)
        exported = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # A damaged file raises several kinds of error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"can't read {path} with {beside.name}: {reason}") from None
    (images,) = exported.in_avals
    return about, images.shape, images.dtype, jax.jit(exported.call)
