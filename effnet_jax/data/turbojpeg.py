"""Decodes only a box of a JPEG, if the system or the wheel `turbojpeg` has libturbojpeg 3.

The entropy coding must be read up to the box's last row, but the inverse transform and the colour
conversion are skipped outside the box. The pixels are those of simplejpeg.
"""

import ctypes
import ctypes.util
import functools
import importlib.metadata
from collections.abc import Callable

import numpy as np

from effnet_jax.data.crop import Box

# From turbojpeg.h, version 3.
INIT_DECOMPRESS = 1
STOP_ON_WARNING, SUBSAMPLING, WIDTH, HEIGHT = 0, 4, 5, 6
RGBX = 2  # Four bytes per pixel, for fast bicubic resizing; the last one has no meaning.
# A crop must begin at a multiple of this width. By subsampling: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0,
# 4:1:1, 4:4:1.
BLOCKS = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}


class Region(ctypes.Structure):
    """tjregion, in pixels."""

    _fields_ = tuple((name, ctypes.c_int) for name in ("x", "y", "width", "height"))


HANDLE, DATA, SIZE, INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
# The result and the arguments of each function that this file calls.
SIGNATURES = {
    "tj3Init": (HANDLE, [INT]),
    "tj3Destroy": (None, [HANDLE]),
    "tj3DecompressHeader": (INT, [HANDLE, DATA, SIZE]),
    "tj3Get": (INT, [HANDLE, INT]),
    "tj3Set": (INT, [HANDLE, INT, INT]),
    "tj3SetCroppingRegion": (INT, [HANDLE, Region]),
    "tj3Decompress8": (INT, [HANDLE, DATA, SIZE, ctypes.c_void_p, INT, INT]),
}


@functools.cache
def library() -> ctypes.PyDLL | None:
    """libturbojpeg, or None if version 3 is not installed."""
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [str(file.locate()) for file in files if "libturbojpeg" in file.name]
    for path in filter(None, [*paths, ctypes.util.find_library("turbojpeg")]):
        try:
            # Only the long call releases the GIL: getting it back takes longer than a short call.
            found = ctypes.PyDLL(path)
            found.tj3Decompress8 = ctypes.CDLL(path).tj3Decompress8
            for name, (result, arguments) in SIGNATURES.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
            return found
        except (OSError, AttributeError):  # It can't be loaded, or is version 2.
            continue
    return None


def decode_box(data: bytes, choose: Callable[[int, int], Box]) -> np.ndarray | None:
    """Decodes the box of a JPEG that `choose(height, width)`, called at most once, returns.

    Returns a view, uint8 [height, width, 4]: RGB and a byte without meaning. Returns None if the
    box can't be decoded alone: no library, a rare kind of JPEG, or a damaged file.
    """
    # Rows below the box are never read, so a truncated file must be detected here.
    if (jpeg := library()) is None or data.rfind(b"\xff\xd9", -64) < 0:
        return None
    handle = jpeg.tj3Init(INIT_DECOMPRESS)
    try:
        jpeg.tj3Set(handle, STOP_ON_WARNING, 1)
        damaged = jpeg.tj3DecompressHeader(handle, data, len(data))
        block = BLOCKS.get(jpeg.tj3Get(handle, SUBSAMPLING))
        if damaged or block is None:
            return None
        whole_width, whole_height = jpeg.tj3Get(handle, WIDTH), jpeg.tj3Get(handle, HEIGHT)
        top, left, height, width = choose(whole_height, whole_width)
        # Upsampling also reads the next pixel of the colour channels, which is block // 8 wide.
        first_x, first_y = max(0, (left - block // 8) // block * block), max(0, top - 1)
        end_x, end_y = min(whole_width, left + width + 1), min(whole_height, top + height + 1)
        out = np.empty((end_y - first_y, end_x - first_x, 4), np.uint8)
        region = Region(first_x, first_y, out.shape[1], out.shape[0])
        failed = jpeg.tj3SetCroppingRegion(handle, region) or jpeg.tj3Decompress8(
            handle, data, len(data), out.ctypes.data, 0, RGBX
        )
    finally:
        jpeg.tj3Destroy(handle)
    return None if failed else out[top - first_y :, left - first_x :][:height, :width]
