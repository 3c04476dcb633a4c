"""The crop, resizing and normalisation for evaluation, defined once for every use."""

import dataclasses
import math
import operator
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from effnet_jax.data import crop
from effnet_jax.data.crop import Box
from effnet_jax.data.decode import decode_box, decode_image, to_rgb
from effnet_jax.data.resizing import INTERPOLATIONS, resize
from effnet_jax.errors import UserError, check_choice

CROP_RULES = ("padding", "fraction", "resize", "squash", "whole")
# A file's path, its bytes, or pixels: a Pillow image or a uint8 array [h, w, 3] of NumPy, JAX, ...
ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray


def normalize(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Converts uint8 images [N, H, W, 3], NumPy or JAX, to float32 `(x - 255 mean) / (255 std)`."""
    shape = (1,) * (images.ndim - 1) + (3,)
    mean, std = (255 * np.asarray(each, np.float32).reshape(shape) for each in (mean, std))
    return (images.astype(np.float32) - mean) / std


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The evaluation crop, resizing and normalisation that a network's weights need.

    `crop_rule` defines the part of the image that is kept:
      padding: the central square of `resolution / (resolution + crop_padding)` of the shorter
        side, then resized. The reference's rule.
      fraction: the central square of `crop_fraction` of the shorter side, then resized.
      resize: the shorter side is resized to `resolution / crop_fraction`, rounded down, then the
        central square is cut out. Equal to the bit to timm (`crop_pct`) and torchvision. (If an
        image is longer than 16 times its shorter side, only its middle is resized.)
      squash: like resize, but both sides are resized to that length. timm's rule.
      whole: the whole image, resized to a square. The reference's rule for V2 from 320 pixels on.
    """

    resolution: int  # Side of the result, in pixels.
    crop_rule: str
    crop_padding: int
    crop_fraction: float
    interpolation: str
    mean: tuple[float, float, float]  # RGB, of pixels in 0..1; also `std`.
    std: tuple[float, float, float]

    def __post_init__(self):
        check_choice("preprocess.crop_rule", self.crop_rule, CROP_RULES)
        check_choice("preprocess.interpolation", self.interpolation, INTERPOLATIONS)
        try:
            object.__setattr__(self, "resolution", operator.index(self.resolution))
        except TypeError:
            text = f"must be a whole number of pixels; got {self.resolution!r}"
            raise UserError(f"preprocess.resolution {text}") from None
        if self.resolution < 1 or self.crop_padding < 0 or not 0 < self.crop_fraction <= 1:
            raise UserError(
                "preprocess needs a resolution of 1 or more, a crop_padding of 0 or more, and a "
                "crop_fraction above 0 and at most 1; "
                f"got {self.resolution}, {self.crop_padding} and {self.crop_fraction}"
            )
        for key in ("mean", "std"):
            value = tuple(getattr(self, key))
            if len(value) != 3 or (key == "std" and min(value) <= 0):
                numbers = "three numbers" + " above 0" * (key == "std")
                raise UserError(f"preprocess.{key} must be {numbers}, for RGB; got {value}")
            if not all(abs(each) <= (1 if key == "mean" else 10) for each in value):
                raise UserError(
                    f"preprocess.{key} must be that of pixels in 0 to 1, not 0 to 255; got {value}"
                )
            object.__setattr__(self, key, value)  # In JSON it is a list.

    @classmethod
    def from_config(cls, config: ConfigDict, resolution: int) -> "Preprocess":
        """The evaluation keys of `config.preprocess`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(resolution, *(config[name] for name in names[1:]))

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict for JSON; `Preprocess(**values)` is the inverse."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def box(self, height: int, width: int) -> Box:
        """The part of an image that is kept; to the nearest pixel for "resize" and "squash"."""
        if self.crop_rule == "whole":
            return 0, 0, height, width
        if self.crop_rule == "squash":
            share = self.resolution / self._shorter_side
            (top, _, h, _), (left, _, w, _) = (
                crop.central_box(side, side, share) for side in (height, width)
            )
            return top, left, h, w
        kept = {
            "padding": self.resolution / (self.resolution + self.crop_padding),
            "fraction": self.crop_fraction,
            "resize": self.resolution / self._shorter_side,
        }
        return crop.central_box(height, width, kept[self.crop_rule])

    @property
    def _shorter_side(self) -> int:
        return math.floor(self.resolution / self.crop_fraction)

    def pixels(self, image: bytes | np.ndarray, exif: str = "apply") -> np.ndarray:
        """Decodes, crops and resizes an image: encoded bytes, or uint8 [h, w, 3].

        `exif` is "apply" or "ignore", for the orientation in encoded bytes, as `config.data.exif`.
        Returns uint8 [resolution, resolution, 3]; raises ValueError if the bytes are damaged.
        """
        square = (self.resolution, self.resolution)
        if self.crop_rule in ("resize", "squash"):
            whole = decode_image(image, exif) if isinstance(image, bytes) else image
            whole = crop.middle(whole) if self.crop_rule == "resize" else whole
            sides = whole.shape[:2] if self.crop_rule == "resize" else square
            shape = tuple(self._shorter_side * side // min(sides) for side in sides)
            # round() takes halves to even, as torchvision does.
            place = (round((side - self.resolution) / 2) for side in shape)
            resized = resize(whole, shape, self.interpolation)
            return np.ascontiguousarray(crop.crop(resized, (*place, *square)))
        if isinstance(image, bytes):
            kept = decode_box(image, self.box, exif)
        else:
            kept = crop.crop(image, self.box(*image.shape[:2]))
        return resize(kept, square, self.interpolation)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray:
        """Converts one image or a list of images to float32 [N, resolution, resolution, 3].

        The orientation in EXIF is applied. Raises UserError, a ValueError, with the name of an
        image that is damaged or not an image, and OSError for a file that can't be read.
        """
        pixels = []
        for number, image in enumerate(images if isinstance(images, list | tuple) else [images]):
            try:
                pixels.append(self.pixels(content(image)))
            except ValueError as error:
                is_path = isinstance(image, str | os.PathLike)
                name = f"{image!s:.80}" if is_path else f"image {number}"
                raise UserError(f"{name}: {error}") from None
        if not pixels:
            raise UserError("an empty list has no images to preprocess; give at least one image")
        return normalize(np.stack(pixels), self.mean, self.std)


def content(image: ImageLike) -> bytes | np.ndarray:
    """The bytes or the pixels of an image; raises ValueError for anything else."""
    if isinstance(image, str) and re.match(r"[a-z][a-z\d+.-]+://|data:", image, re.IGNORECASE):
        raise ValueError("a URL is not fetched; give the image's path or its bytes")
    if isinstance(image, str | os.PathLike):
        return pathlib.Path(image).read_bytes()
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"a Pillow image must not be empty; got the size {image.size}")
        return to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not hasattr(image, "__array__"):
        raise ValueError(
            f"{type(image).__name__} is not a type of image; give a path, bytes, a Pillow image or "
            "a uint8 array [h, w, 3], or a list of these"
        )
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"an array must be uint8 [h, w, 3] and not empty; got {image.dtype} {image.shape}"
        )
    return image
