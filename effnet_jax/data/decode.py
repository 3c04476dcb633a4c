"""Encoded image bytes to RGB pixels."""

import contextlib
import functools
import io
import re
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from effnet_jax.data import turbojpeg
from effnet_jax.data.crop import Box, crop
from effnet_jax.run.files import left_by_download

JPEG = b"\xff\xd8"
# Tags of TIFF; EXIF has the last one too. Bits of KIND mark pages that are no image of their own.
KIND, BITS, PHOTOMETRIC, ORIENTATION = 254, 258, 262, 274
PREVIEW = 0b101  # A smaller version of another page, or its transparency.
# What makes an image upright, by EXIF orientation: transpose it, then turn rows, columns around.
TURNS = {
    **{2: (False, False, True), 3: (False, True, True), 4: (False, True, False)},
    **{5: (True, False, False), 6: (True, False, True), 7: (True, True, True)},
    8: (True, True, False),
}
LOWEST = 1 << 12  # A 16-bit image that stays below may be one of 12 bits, 16 times too dark.
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # Brands.


def decode_box(
    data: bytes | np.ndarray, choose: Callable[[int, int], Box], exif: str = "ignore"
) -> np.ndarray:
    """The box of an image that `choose(height, width)` gives, a view.

    It is uint8 [h, w, 3], RGB; or [h, w, 4], whose last channel has no meaning. With libturbojpeg 3
    only the box of a JPEG is decoded. `data`, `exif` and errors are those of `decode_image`.
    """
    if isinstance(data, np.ndarray):
        return crop(data, choose(*data.shape[:2]))
    if turn := _turn(data, exif):
        transposed, rows, columns = turn

        def choose_stored(height: int, width: int) -> Box:
            if transposed:
                height, width = width, height
            top, left, h, w = choose(height, width)
            top = height - top - h if rows else top
            left = width - left - w if columns else left
            return (left, top, w, h) if transposed else (top, left, h, w)

        return _upright(decode_box(data, choose_stored), turn)
    choose = functools.cache(choose)  # It draws random numbers, and may be asked twice.
    if data[:2] == JPEG and (found := turbojpeg.decode_box(data, choose)) is not None:
        return found
    image = decode_image(data)
    return crop(image, choose(*image.shape[:2]))


def decode_image(data: bytes | np.ndarray, exif: str = "ignore") -> np.ndarray:
    """Decodes JPEG, PNG or whatever Pillow reads to RGB, uint8 [height, width, 3].

    An array is taken as such pixels, and returned.

    Grey is repeated and alpha dropped, as in the reference; see `to_rgb`. EXIF's orientation is
    ignored, as there; or, with `exif="apply"`, the image becomes upright, as viewers show it. (That
    of TIFF is always applied.) Raises ValueError if the bytes are not an image, are damaged, or are
    several images: an animation, or pages.
    """
    if isinstance(data, np.ndarray):
        return data
    if turn := _turn(data, exif):
        return np.ascontiguousarray(_upright(decode_image(data), turn))
    if data[:2] == JPEG:
        # Pillow reads CMYK and other rare kinds; damaged files fail there as well.
        with contextlib.suppress(ValueError):
            # Strict: libjpeg by default fills the missing part of a truncated file with grey.
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if (count := _count_frames(image)) > 1:
                raise ValueError(f"it has {count} frames or pages; save the one that is meant")
            return to_rgb(image)
    except Image.UnidentifiedImageError:
        raise ValueError(_name(data)) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _count_frames(image: Image.Image) -> int:
    """The number of images in a file; the others of a photograph's JPEG belong to it."""
    count = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if image.format != "TIFF":
        return count
    others = 0
    for number in range(1, count):
        image.seek(number)
        others += not image.tag_v2.get(KIND, 0) & PREVIEW
    image.seek(0)
    return 1 + others


def _name(data: bytes) -> str:
    """What bytes are that no decoder knows."""
    if not data:
        return "it is empty"
    if data[4:8] == b"ftyp" and data[8:12] in HEIC:
        return "it is a HEIC image, as telephones make them; convert it to JPEG"
    if meaning := left_by_download(data[:64]):
        return f"it is {meaning}"
    return f"it is no image, or a badly damaged one; it starts with {data[:12]!r}"


def _turn(data: bytes, exif: str) -> tuple[bool, bool, bool] | None:
    """What makes an image upright, of TURNS; None where it is, or `exif` is "ignore"."""
    if exif == "ignore":
        return None
    # Pillow makes a TIFF upright itself. Damaged EXIF says nothing; a damaged image fails later.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        return TURNS.get(image.getexif().get(ORIENTATION)) if image.format != "TIFF" else None
    return None


def _upright(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, rows, columns = turn
    image = image.transpose(1, 0, 2) if transposed else image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image of Pillow: uint8 [height, width, 3], RGB.

    16 bits are scaled by their range. Raises ValueError for grey of 32 bits or signed, whose range
    is not known, and for 16 bits that may be fewer: the values are below 4096.
    """
    if image.mode in ("I", "F"):
        kind = {"I": "integers", "F": "floats"}[image.mode]
        raise ValueError(f"it has grey of {kind}, whose range is not known; save it as 8-bit")
    if not image.mode.startswith("I;16"):
        # Pillow keeps the upper 8 bits of 16; how it unpacks them says so.
        has_16_bits = re.search(r"RGB\w*;16[BLN]", str(getattr(image, "tile", "")))
        if isinstance(image.info.get("transparency"), bytes):  # A palette's; Pillow warns.
            image = image.convert("RGBA")
        pixels = np.asarray(image.convert("RGB"))
        if has_16_bits and 0 < pixels.max() < LOWEST >> 8:
            _refuse_dark("colours", (int(pixels.max()) << 8) + 255)
        return pixels
    grey = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})  # Of a TIFF.
    bits = int(tags.get(BITS, (16,))[0])
    if bits == 16 and 0 < grey.max() < LOWEST:
        _refuse_dark("grey", grey.max())
    most = (1 << bits) - 1
    grey = most - grey if tags.get(PHOTOMETRIC) == 0 else grey  # 0: white is 0.
    grey = ((grey * 255 + most // 2) // most).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def _refuse_dark(what: str, most: int) -> None:
    raise ValueError(
        f"it has 16-bit {what} of at most {most}, of 65535, as if it had 12 bits or fewer; save it "
        "as 8-bit, or with values that use the range"
    )
