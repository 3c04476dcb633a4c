"""Encoded image bytes to RGB pixels."""

import contextlib
import functools
import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from effnet_jax.data import restarts, turbojpeg
from effnet_jax.data.crop import Box, crop

JPEG = b"\xff\xd8"


def decode_box(data: bytes, choose: Callable[[int, int], Box]) -> np.ndarray:
    """The box of an image that `choose(height, width)` gives, a view.

    Of a JPEG with restart markers, little more than the box is read; where libturbojpeg 3 is there,
    no more than the box is decoded of any other. Errors as for `decode_image`.

    Returns:
      uint8 [h, w, 3], RGB; or [h, w, 4], of which the last channel has no meaning.
    """
    choose = functools.cache(choose)  # What it draws at random, it draws once.
    if data[:2] == JPEG:
        if (part := restarts.cut(data, choose)) is not None:
            with contextlib.suppress(ValueError):  # What is wrong, decoding the whole will say.
                return crop(simplejpeg.decode_jpeg(part[0], "RGBX", strict=True), part[1])
        if (found := turbojpeg.decode_box(data, choose)) is not None:
            return found
    image = decode_image(data)
    return crop(image, choose(*image.shape[:2]))


def decode_image(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG or whatever Pillow reads.

    Args:
      data: the encoded image. EXIF orientation is ignored, as in the reference.

    Returns:
      uint8 [height, width, 3], RGB. Grey is repeated, alpha is dropped.

    Raises:
      ValueError: the bytes are no image, or a damaged one.
    """
    if data[:2] == JPEG:
        try:
            # Strict: libjpeg by itself fills what is missing of a truncated file with grey.
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except ValueError:
            pass  # CMYK and other rare kinds are left to Pillow; damaged files fail there as well.
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("it is no image, or a badly damaged one") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
