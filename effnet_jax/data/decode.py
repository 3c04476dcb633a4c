"""Decoding of image files to RGB pixels."""

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
# Tags of TIFF; ORIENTATION is also a tag of EXIF.
KIND, BITS, PHOTOMETRIC, ORIENTATION = 254, 258, 262, 274
PREVIEW = 0b101  # Bits of KIND: the page is a smaller version of another, or its transparency.
# How to make an image upright, by EXIF orientation: transpose it, then reverse rows and columns.
TURNS = {
    **{2: (False, False, True), 3: (False, True, True), 4: (False, True, False)},
    **{5: (True, False, False), 6: (True, False, True), 7: (True, True, True)},
    8: (True, True, False),
}
LOWEST = 1 << 12  # A 16-bit image below this may have 12 bits, and would be 16 times too dark.
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # File brands.


def decode_box(
    data: bytes | np.ndarray, choose: Callable[[int, int], Box], exif: str = "ignore"
) -> np.ndarray:
    """Decodes the box of an image that `choose(height, width)` returns.

    Returns a view, uint8 [h, w, 3] in RGB, or [h, w, 4] with a last channel to ignore. With
    libturbojpeg 3 only the box of a JPEG is decoded. `data`, `exif` and errors are those of
    `decode_image`.
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
    choose = functools.cache(choose)  # It draws random numbers, and may be called twice.
    if data[:2] == JPEG and (found := turbojpeg.decode_box(data, choose)) is not None:
        return found
    image = decode_image(data)
    return crop(image, choose(*image.shape[:2]))


def decode_image(data: bytes | np.ndarray, exif: str = "ignore") -> np.ndarray:
    """Decodes JPEG, PNG or another format that Pillow reads to RGB, uint8 [height, width, 3].

    An array must have such pixels already, and is returned unchanged.

    Grey is repeated and alpha is dropped, as in the reference; see `to_rgb`. The orientation in
    EXIF is ignored, as in the reference; `exif="apply"` makes the image upright, as viewers show
    it. (The orientation of a TIFF is always applied.) Raises ValueError if the bytes are not an
    image, are damaged, or have several images: an animation, or pages.
    """
    if isinstance(data, np.ndarray):
        return data
    if turn := _turn(data, exif):
        return np.ascontiguousarray(_upright(decode_image(data), turn))
    if data[:2] == JPEG:
        # Pillow decodes CMYK and other kinds that this can't, and also refuses damaged files.
        with contextlib.suppress(ValueError):
            # Strict: libjpeg by default fills the missing part of a truncated file with grey.
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if (count := _count_frames(image)) > 1:
                raise ValueError(f"it has {count} frames or pages; save one of them as an image")
            return to_rgb(image)
    except Image.UnidentifiedImageError:
        raise ValueError(_name(data)) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _count_frames(image: Image.Image) -> int:
    """The number of images in a file; further frames of a JPEG belong to its photograph."""
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
    """Describes bytes that no decoder recognizes."""
    if not data:
        return "it is empty"
    if data[4:8] == b"ftyp" and data[8:12] in HEIC:
        return "it is a HEIC image, a format that phones save; convert it to JPEG"
    if meaning := left_by_download(data[:64]):
        return f"it is {meaning}"
    return f"it is not an image, or badly damaged; it starts with {data[:12]!r}"


def _turn(data: bytes, exif: str) -> tuple[bool, bool, bool] | None:
    """The entry of TURNS for an image; None if it is upright, or if `exif` is "ignore"."""
    if exif == "ignore":
        return None
    # Pillow itself makes a TIFF upright. Damaged EXIF is ignored; a damaged image fails later.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        return TURNS.get(image.getexif().get(ORIENTATION)) if image.format != "TIFF" else None
    return None


def _upright(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, rows, columns = turn
    image = image.transpose(1, 0, 2) if transposed else image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image as RGB, uint8 [height, width, 3].

    Values of 16 bits are scaled by their range. Raises ValueError for grey of 32 bits or with a
    sign, whose range is unknown, and for 16-bit values below 4096, which may have only 12 bits.
    """
    if image.mode in ("I", "F"):
        kind = {"I": "integers", "F": "floats"}[image.mode]
        raise ValueError(f"its grey levels are {kind} of unknown range; save it as 8-bit")
    if not image.mode.startswith("I;16"):
        # Pillow keeps the upper 8 of 16 bits; only its unpacking mode shows that there were 16.
        has_16_bits = re.search(r"RGB\w*;16[BLN]", str(getattr(image, "tile", "")))
        # Pillow warns when it converts a palette with transparent colours to RGB directly.
        if isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")
        pixels = np.asarray(image.convert("RGB"))
        if has_16_bits and 0 < pixels.max() < LOWEST >> 8:
            _refuse_dark("colour", (int(pixels.max()) << 8) + 255)
        return pixels
    grey = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})  # Only a TIFF has them.
    bits = int(tags.get(BITS, (16,))[0])
    if bits == 16 and 0 < grey.max() < LOWEST:
        _refuse_dark("grey", grey.max())
    most = (1 << bits) - 1
    grey = most - grey if tags.get(PHOTOMETRIC) == 0 else grey  # 0 means that white is 0.
    grey = ((grey * 255 + most // 2) // most).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def _refuse_dark(kind: str, most: int) -> None:
    raise ValueError(
        f"its 16-bit {kind} levels are at most {most} of 65535, as if it had 12 bits or fewer; "
        "save it as 8-bit, or scale the levels to the full range"
    )
