"""Encoded image bytes to RGB pixels."""

import contextlib
import functools
import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from effnet_jax.data import turbojpeg
from effnet_jax.data.crop import Box, crop

JPEG = b"\xff\xd8"


def decode_box(data: bytes, choose: Callable[[int, int], Box]) -> np.ndarray:
    """The box of an image that `choose(height, width)` gives, a view.

    It is uint8 [h, w, 3], RGB; or [h, w, 4], whose last channel has no meaning. With libturbojpeg 3
    only the box of a JPEG is decoded. Errors are those of `decode_image`.
    """
    choose = functools.cache(choose)  # It draws random numbers, and may be asked twice.
    if data[:2] == JPEG and (found := turbojpeg.decode_box(data, choose)) is not None:
        return found
    image = decode_image(data)
    return crop(image, choose(*image.shape[:2]))


def decode_image(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG or whatever Pillow reads to RGB, uint8 [height, width, 3].

    Grey is repeated, alpha dropped, and EXIF orientation ignored, as in the reference. Raises
    ValueError if the bytes are not an image, or are damaged.
    """
    if data[:2] == JPEG:
        # Pillow reads CMYK and other rare kinds; damaged files fail there as well.
        with contextlib.suppress(ValueError):
            # Strict: libjpeg by default fills the missing part of a truncated file with grey.
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("it is no image, or a badly damaged one") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
