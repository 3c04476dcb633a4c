"""Exports trained networks to files that run without this package: StableHLO, ONNX and TFLite.

The network in a file takes RGB images [N, resolution, resolution, 3]. An ONNX file has the
preprocessing and the class names in its metadata; the others have them in a JSON file next to them.
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
VERSION = 1  # Of the metadata.


def check(path: pathlib.Path, overwrite: bool = False, int8: bool = False) -> None:
    """Raises UserError if `write` can't write this file."""
    check_local("--to", path)
    if path.suffix not in FORMATS:
        *others, last = FORMATS
        raise UserError(f"--to={path} must end in {', '.join(others)} or {last}")
    if int8 and path.suffix != ".onnx":
        raise UserError(f"--int8 applies to files that end in .onnx, not to {path.name}")
    FORMATS[path.suffix].check_installed()
    existing = [each for each in FORMATS[path.suffix].files(path) if each.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} already exists; --overwrite replaces it")
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
    """Writes a network to a file that computes in float32, or in int8 if calibrated.

    Args:
      path: path of the file; its suffix is one of `FORMATS`.
      weights: the network with its weights, preprocessing and class names.
      batch: number of images that a call takes; None means any number.
      pixels: take uint8 images and normalise them, instead of normalised float32 images.
      softmax: return probabilities instead of logits.
      calibration: batches of uint8 images; an ONNX file is then quantised to int8.
      overwrite: replace existing files.

    Raises:
      UserError: unknown suffix, missing package, existing file, an operation that can't be
        translated to ONNX, no image for calibration, or a file that can't be written.
    """
    path = pathlib.Path(path).expanduser()
    check(path, overwrite, calibration is not None)
    config, side = weights.config.copy_and_resolve_references(), weights.preprocess["resolution"]
    with config.unlocked():
        config.update(operations="plain", dtype="float32")
    model, file_format = models.build(config), FORMATS[path.suffix]
    normalized = functools.partial(
        normalize, mean=weights.preprocess["mean"], std=weights.preprocess["std"]
    )
    if file_format.FOLDED:
        network = folding.logits(model, weights.variables)
    else:

        def network(images):
            return model.apply(weights.variables, images, train=False)[0]

    def logits(images: jax.Array) -> jax.Array:
        return network(normalized(images) if pixels else images)

    size = batch or symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8 if pixels else np.float32)
    numbers = "uint8" if pixels else "float32, (pixel / 255 - mean) / std"
    metadata = {
        "format_version": VERSION,
        "images": f"[{size}, {side}, {side}, 3] RGB, {numbers}",
        "output": "probabilities" if softmax else "logits",
        "preprocess": weights.preprocess,
        "classes": weights.classes,
    }
    options = {}
    if calibration is not None:
        options["calibration"] = calibration if pixels else map(normalized, calibration)
    contents = file_format.convert(logits, images, softmax, metadata, **options)
    for file, content in zip(file_format.files(path), contents, strict=True):
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
      preprocess: preprocessing of the images.
      classes: names of the outputs.
      softmax: whether the outputs are probabilities; otherwise they are logits.
      images: shape [N, resolution, resolution, 3] and dtype of the images; N is an int if a call
        takes exactly N images.
      function: maps images to outputs [N, classes].
    """

    preprocess: Preprocess
    classes: tuple[str, ...]
    softmax: bool
    images: tuple[tuple, np.dtype]
    function: Callable[[np.ndarray], Any]

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the file's outputs [N, classes] for any number of uint8 images."""
        (size, *sides), dtype = self.images
        images = pixels
        if dtype != np.uint8:
            images = normalize(pixels, self.preprocess.mean, self.preprocess.std)
        size = size if isinstance(size, int) else len(images)
        padding = np.zeros((-len(images) % size, *sides), images.dtype)
        chunks = np.concatenate([images, padding]).reshape(-1, size, *sides)
        return np.concatenate([self.function(each) for each in chunks])[: len(images)]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Returns probabilities [N, classes] for any number of uint8 images."""
        outputs = self.outputs(pixels)
        if self.softmax:
            return outputs
        powers = np.exp(outputs - outputs.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


def read(path: str | pathlib.Path) -> Exported:
    """Opens a file that `write` wrote; raises UserError for a damaged file or any other file."""
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no file {path}")
    metadata, *images, function = FORMATS[path.suffix].read(path)
    try:
        if metadata["format_version"] > VERSION:
            raise UserError(
                f"{path} has format version {metadata['format_version']}, and this release reads "
                f"versions up to {VERSION}; update effnet_jax"
            )
        preprocess, classes = Preprocess(**metadata["preprocess"]), tuple(metadata["classes"])
        softmax = metadata["output"] == "probabilities"
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} was not exported by effnet_jax: {error!r} is missing") from None
    return Exported(preprocess, classes, softmax, tuple(images), function)
