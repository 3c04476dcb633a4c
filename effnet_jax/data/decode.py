"""Encoded image bytes to RGB pixels."""

import io

import numpy as np
import simplejpeg
from PIL import Image


def decode_image(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG or whatever Pillow reads.

    Args:
      data: the encoded image. EXIF orientation is ignored, as in the reference.

    Returns:
      uint8 [height, width, 3], RGB. Grey is repeated, alpha is dropped.

    Raises:
      ValueError: the bytes are no image, or a damaged one.
    """
    if data[:2] == b"\xff\xd8":
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
