"""Trained networks as files that run without this package: StableHLO for JAX, ONNX, and TFLite.

Every file takes RGB images [N, resolution, resolution, 3], and states its preprocessing and its
classes: ONNX in its metadata, the others in a file of JSON next to it.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.export import symbolic_shape

from effnet_jax import models
from effnet_jax.data.preprocess import Preprocess, normalize
from effnet_jax.errors import UserError
from effnet_jax.export import folding, onnx, stablehlo, tflite
from effnet_jax.run.files import check_local, make_folder
from effnet_jax.weights import Weights

FORMATS = {".stablehlo": stablehlo, ".onnx": onnx, ".tflite": tflite}
VERSION = 1  # Of what a file states.


def check(path: pathlib.Path, overwrite: bool = False, int8: bool = False) -> None:
    """Raises UserError where `write` can't write a file of this name."""
    check_local("--to", path)
    if path.suffix not in FORMATS:
        endings = " or ".join(FORMATS)
        raise UserError(f"--to={path}: the ending chooses the format; give a file with {endings}")
    if int8 and path.suffix != ".onnx":
        raise UserError(f"--int8 needs a file that ends in .onnx, not {path.name}")
    FORMATS[path.suffix].check_installed()
    there = [each for each in FORMATS[path.suffix].files(path) if each.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already; --overwrite replaces it")
    make_folder("--to", path.parent)


def write(
    path: str | pathlib.Path,
    weights: Weights,
    batch: int | None = None,
    pixels: bool = False,
    softmax: bool = False,
    calibration: Iterable[np.ndarray] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a network as a file, in float32.

    Args:
      path: of the file, whose ending is one of `FORMATS`.
      weights: of the network, with what belongs to them.
      batch: how many images it takes; None: any number.
      pixels: whether it takes uint8 and normalises, or takes normalised float32.
      softmax: whether it returns probabilities, or logits.
      calibration: batches of uint8 images, with which an ONNX file is quantised to int8.
      overwrite: whether existing files may be replaced.

    Raises:
      UserError: an unknown ending, a missing package, an existing file, an operation that ONNX does
        not have, no image for calibration, or a file that can't be written.
    """
    path = pathlib.Path(path).expanduser()
    check(path, overwrite, calibration is not None)
    config, side = weights.config.copy_and_resolve_references(), weights.preprocess["resolution"]
    with config.unlocked():
        config.update(operations="plain", dtype="float32")
    model, found = models.build(config), FORMATS[path.suffix]
    normalized = functools.partial(
        normalize, mean=weights.preprocess["mean"], std=weights.preprocess["std"]
    )
    if found.FOLDED:
        network = folding.logits(model, weights.variables)
    else:

        def network(images):
            return model.apply(weights.variables, images, train=False)[0]

    def logits(images: jax.Array) -> jax.Array:
        return network(normalized(images) if pixels else images)

    size = batch or symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8 if pixels else np.float32)
    numbers = "uint8" if pixels else "float32, (pixel / 255 - mean) / std"
    about = {
        "format_version": VERSION,
        "images": f"[{size}, {side}, {side}, 3] RGB, {numbers}",
        "output": "probabilities" if softmax else "logits",
        "preprocess": weights.preprocess,
        "classes": weights.classes,
    }
    options = {}
    if calibration is not None:
        options["calibration"] = calibration if pixels else map(normalized, calibration)
    contents = found.convert(logits, images, softmax, about, **options)
    for file, content in zip(found.files(path), contents, strict=True):
        _write(file, content)


def _write(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that `write` wrote, ready to run.

    Attributes:
      preprocess: of its images.
      classes: names of its outputs.
      softmax: whether its outputs are probabilities, or logits.
      images: shape and dtype of its images; N is an int where it takes no other number of them.
      function: images -> outputs [N, classes].
    """

    preprocess: Preprocess
    classes: tuple[str, ...]
    softmax: bool
    images: tuple[tuple, np.dtype]
    function: Callable[[np.ndarray], Any]

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """What the file returns, [N, classes], for any number of uint8 images."""
        (size, *sides), dtype = self.images
        images = pixels
        if dtype != np.uint8:
            images = normalize(pixels, self.preprocess.mean, self.preprocess.std)
        size = size if isinstance(size, int) else len(images)
        padding = np.zeros((-len(images) % size, *sides), images.dtype)
        chunks = np.concatenate([images, padding]).reshape(-1, size, *sides)
        return np.concatenate([self.function(each) for each in chunks])[: len(images)]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities [N, classes] for any number of uint8 images."""
        outputs = self.outputs(pixels)
        if self.softmax:
            return outputs
        powers = np.exp(outputs - outputs.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


def read(path: str | pathlib.Path) -> Exported:
    """Opens a file that `write` wrote; raises UserError where it can't be read, or is another's."""
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no file {path}")
    about, *images, function = FORMATS[path.suffix].read(path)
    try:
        if about["format_version"] > VERSION:
            raise UserError(
                f"{path} has format version {about['format_version']}, and this release knows "
                f"{VERSION}; update effnet_jax"
            )
        preprocess, classes = Preprocess(**about["preprocess"]), tuple(about["classes"])
        softmax = about["output"] == "probabilities"
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} was not exported by this program: {error!r} is missing") from None
    return Exported(preprocess, classes, softmax, tuple(images), function)
