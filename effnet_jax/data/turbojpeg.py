"""What libturbojpeg 3 can and simplejpeg can't, where it is installed: optional, and exact.

That is decoding only a box of a JPEG, and cutting boxes out of one without decoding it. Most of a
JPEG's decoding time goes into its entropy coding, which has to be read up to the box's last row
(`restarts.py` has the way around that); colour conversion and the inverse transform are spared
outside the box. The library is the system's, or the one in the wheel `turbojpeg` (`pip install
turbojpeg`).
"""

import ctypes
import ctypes.util
import functools
import importlib.metadata
from collections.abc import Callable, Sequence

import numpy as np

from effnet_jax.data.crop import Box

# Of turbojpeg.h, version 3.
INIT_DECOMPRESS, INIT_TRANSFORM = 1, 2
CROP, COPY_NO_MARKERS = 4, 64  # Options of a transformation.
STOP_ON_WARNING, SUBSAMPLING, WIDTH, HEIGHT = 0, 4, 5, 6
RGBX = 2  # Four bytes a pixel, as bicubic resizing wants it; the last has no meaning.
# Width of the blocks that a crop has to begin at, by subsampling: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0,
# 4:1:1, 4:4:1.
BLOCKS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}


class Region(ctypes.Structure):
    """tjregion, in pixels."""

    _fields_ = tuple((name, ctypes.c_int) for name in ("x", "y", "width", "height"))


class Transform(ctypes.Structure):
    """tjtransform."""

    _fields_ = (
        *(("region", Region), ("operation", ctypes.c_int), ("options", ctypes.c_int)),
        *(("data", ctypes.c_void_p), ("filter", ctypes.c_void_p)),
    )


def _candidates() -> list[str]:
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    bundled = [str(file.locate()) for file in files if "libturbojpeg" in file.name]
    return [*bundled, *filter(None, [ctypes.util.find_library("turbojpeg")])]


@functools.cache
def library() -> ctypes.CDLL | None:
    """libturbojpeg, if one of version 3 is there."""
    for path in _candidates():
        try:
            found = ctypes.CDLL(path)
            handle, size = ctypes.c_void_p, ctypes.c_size_t
            found.tj3Init.restype = handle
            found.tj3Destroy.argtypes = [handle]
            found.tj3Destroy.restype = None
            found.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
            found.tj3Get.argtypes = [handle, ctypes.c_int]
            found.tj3Set.argtypes = [handle, ctypes.c_int, ctypes.c_int]
            found.tj3SetCroppingRegion.argtypes = [handle, Region]
            found.tj3Decompress8.argtypes = [
                *(handle, ctypes.c_char_p, size),
                *(ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
            ]
            pointers, sizes = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(size)
            found.tj3Transform.argtypes = [
                *(handle, ctypes.c_char_p, size, ctypes.c_int),
                *(pointers, sizes, ctypes.POINTER(Transform)),
            ]
            found.tj3Free.argtypes = [ctypes.c_void_p]
            found.tj3Free.restype = None
            found.tj3GetErrorStr.argtypes = [handle]
            found.tj3GetErrorStr.restype = ctypes.c_char_p
            return found
        except (OSError, AttributeError):  # Not to be loaded, or of version 2.
            continue
    return None


def decode_box(data: bytes, choose: Callable[[int, int], Box]) -> np.ndarray | None:
    """The box of a JPEG that `choose(height, width)` gives: the pixels that a crop would have.

    Args:
      data: the encoded image.
      choose: called at most once.

    Returns:
      uint8 [height, width, 4] of the box, a view: RGB and a byte without meaning. None where this
      can't be done, or not surely: no library, a rare kind of JPEG, a damaged file.
    """
    # Rows below the box are never read, so that a file that ends early has to be found out here.
    if library() is None or data.rfind(b"\xff\xd9", -64) < 0:
        return None
    handle = library().tj3Init(INIT_DECOMPRESS)
    try:
        return _decode(library(), handle, data, choose)
    finally:
        library().tj3Destroy(handle)


def _decode(jpeg, handle: int, data: bytes, choose) -> np.ndarray | None:
    jpeg.tj3Set(handle, STOP_ON_WARNING, 1)
    if jpeg.tj3DecompressHeader(handle, data, len(data)):
        return None
    block = BLOCKS.get(jpeg.tj3Get(handle, SUBSAMPLING))
    if block is None:
        return None
    whole_width, whole_height = jpeg.tj3Get(handle, WIDTH), jpeg.tj3Get(handle, HEIGHT)
    top, left, height, width = choose(whole_height, whole_width)
    # Upsampling of the colours looks one pixel further; at the left only a block can be added.
    first_x = max(0, (left // block - 1) * block)
    first_y = max(0, top - 1)
    end_x = min(whole_width, left + width + 1)
    end_y = min(whole_height, top + height + 1)
    out = np.empty((end_y - first_y, end_x - first_x, 4), np.uint8)
    region = Region(first_x, first_y, out.shape[1], out.shape[0])
    failed = jpeg.tj3SetCroppingRegion(handle, region) or jpeg.tj3Decompress8(
        handle, data, len(data), out.ctypes.data, 0, RGBX
    )
    if failed:
        return None
    return out[top - first_y :, left - first_x :][:height, :width]


def transform(data: bytes, boxes: Sequence[Box | None]) -> list[bytes]:
    """Parts of a JPEG as JPEGs, baseline and with the standard's Huffman tables, not decoded.

    Args:
      data: a JPEG.
      boxes: of the parts; they begin where a block does. None: the whole, with its metadata.

    Raises:
      ValueError: the file is damaged, or of a kind that can't be transformed.
    """
    count = len(boxes)
    wanted = (Transform * count)()
    outs, sizes = (ctypes.c_void_p * count)(), (ctypes.c_size_t * count)()
    for each, box in zip(wanted, boxes, strict=True):
        if box is not None:
            top, left, height, width = box
            each.region = Region(left, top, width, height)
            each.options = CROP | COPY_NO_MARKERS
    jpeg = library()
    handle = jpeg.tj3Init(INIT_TRANSFORM)
    try:
        jpeg.tj3Set(handle, STOP_ON_WARNING, 1)
        if jpeg.tj3Transform(handle, data, len(data), count, outs, sizes, wanted):
            raise ValueError(jpeg.tj3GetErrorStr(handle).decode(errors="replace"))
        return [ctypes.string_at(out, size) for out, size in zip(outs, sizes, strict=True)]
    finally:
        for out in outs:
            jpeg.tj3Free(out)
        jpeg.tj3Destroy(handle)
