"""Restart markers: JPEGs out of which a crop is decoded without reading what lies around it.

A JPEG's entropy coding is read from its beginning, and takes most of the time of decoding. It
starts anew after each restart marker (ITU T.81, E.1.4). `add` puts a marker behind every few blocks
without changing a coefficient, and an index of where they are into a segment that decoders skip;
`cut` then makes a small JPEG of those blocks that a crop needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from effnet_jax.data import turbojpeg
from effnet_jax.data.crop import Box

END = b"\xff\xd9"
FRAME, SCAN, INTERVAL = (0xC0, 0xC1), 0xDA, 0xDD  # Baseline and extended frames, of one scan.
INDEX, INDEX_NAME = 0xEF, b"restarts\0"  # APP15; then the intervals' lengths in bytes, two each.
FIRST_RESTART = 0xD0  # The first of eight, which take turns.
# Pixels around a crop that its colours, which are upsampled, may depend on.
MARGIN = 2
# Pixels between two markers, at least: fewer make the file larger, more are decoded in vain.
LEAST_WIDTH = 32


class Layout(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
      height, width: in pixels.
      block: height and width of a block (MCU) in pixels, all components together.
      interval: blocks between restart markers; 0: there are none.
      size_at: where height and width are written, as two bytes each.
      index_at: where the index begins, up to the scan; 0: there is none.
      scan_at: where the scan's header begins.
      data_at: where the entropy-coded blocks begin.
    """

    height: int
    width: int
    block: tuple[int, int]
    interval: int
    size_at: int
    index_at: int
    scan_at: int
    data_at: int

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.block[0]), -(-self.width // self.block[1])


def read_layout(data: bytes) -> Layout | None:
    """The layout, or None where it's not of the kind that is cut: one scan, one sampling."""
    place, interval, frame, index_at = 2, 0, None, 0
    try:
        while data[place + 1] != SCAN:
            if data[place + 1] in FRAME:
                frame = place
            elif data[place + 1] == INTERVAL:
                interval = data[place + 4] << 8 | data[place + 5]
            elif data[place + 1] == INDEX and data.startswith(INDEX_NAME, place + 4):
                index_at = place
            place += 2 + (data[place + 2] << 8 | data[place + 3])
        if frame is None or data[place + 4] != (components := data[frame + 9]):
            return None
        # Of one component a block has 8 x 8 pixels; of three the others have 1 block to its h x v.
        sampling = data[frame + 11] if components == 3 else 0x11
        others = {data[frame + 11 + 3 * each] for each in range(1, components)}
        if data[frame + 4] != 8 or components not in (1, 3) or others - {0x11}:
            return None
        size = data[frame + 5 : frame + 9]
        return Layout(
            height=size[0] << 8 | size[1],
            width=size[2] << 8 | size[3],
            block=(8 * (sampling & 15), 8 * (sampling >> 4)),
            interval=interval,
            size_at=frame + 5,
            index_at=index_at,
            scan_at=place,
            data_at=place + 2 + (data[place + 2] << 8 | data[place + 3]),
        )
    except IndexError:
        return None


def cut(data: bytes, choose: Callable[[int, int], Box]) -> tuple[bytearray, Box] | None:
    """A smaller JPEG in which the box has the pixels that it has in the whole one.

    Args:
      data: a JPEG.
      choose: gives the box for height and width; called once, and only where it can be cut.

    Returns:
      The JPEG and the box's place in it; None where `add` did not make it, or not all is there.
    """
    layout = read_layout(data)
    if layout is None or not layout.interval or not layout.index_at:
        return None
    (rows, columns), interval = layout.blocks, layout.interval
    index = data[layout.index_at + 4 + len(INDEX_NAME) : layout.scan_at]
    if not rows or columns % interval or len(index) != 2 * rows * columns // interval:
        return None
    # In rows as they lie in the image; markers are counted to what they end.
    lengths = np.frombuffer(index, ">u2").reshape(rows, columns // interval)
    ends = layout.data_at + np.cumsum(lengths, dtype=np.int64).reshape(lengths.shape)
    starts = ends - lengths
    if ends[-1, -1] != len(data) or not data.endswith(END):
        return None

    top, left, height, width = box = choose(layout.height, layout.width)
    tall, wide = layout.block[0], layout.block[1] * interval
    first_row, first = max(0, top - MARGIN) // tall, max(0, left - MARGIN) // wide
    end_row = min(rows, -(-(top + height + MARGIN) // tall))
    end = min(ends.shape[1], -(-(left + width + MARGIN) // wide))
    y, x = first_row * tall, first * wide
    out = bytearray(data[: layout.index_at] + data[layout.scan_at : layout.data_at])
    size = (min(layout.height, end_row * tall) - y, min(layout.width, end * wide) - x)
    out[layout.size_at : layout.size_at + 4] = np.array(size, ">u2").tobytes()
    begun = len(out)
    starts, ends = starts[first_row:end_row, first], ends[first_row:end_row, first:end]
    for low, high in zip(starts.tolist(), ends[:, -1].tolist(), strict=True):
        out += data[low:high]
    # Markers are counted anew; the last gives way to the end.
    sizes = ends[:, -1] - starts
    moved = (ends + (begun + np.cumsum(sizes) - sizes - starts)[:, None]).ravel()
    values = np.frombuffer(out, np.uint8)
    out[-2:] = END[:1] + bytes([FIRST_RESTART])
    if (values[moved - 2] != 0xFF).any() or (values[moved - 1] & 0xF8 != FIRST_RESTART).any():
        return None
    values[moved - 1] = FIRST_RESTART + np.arange(moved.size) % 8
    out[-2:] = END
    return out, (top - y, left - x, *box[2:])


def add(data: bytes) -> bytes:
    """The same JPEG with restart markers, its coefficients untouched; progressive becomes baseline.

    Needs libturbojpeg 3.

    Args:
      data: a JPEG.

    Returns:
      The JPEG with markers and index; as it was where it has them, or is of a rare kind.

    Raises:
      ValueError: the file is damaged.
    """
    if (layout := read_layout(data)) and layout.index_at:
        return data
    whole = turbojpeg.transform(data, [None])
    layout = whole and read_layout(whole[0])
    if not layout:
        return data
    _, columns = layout.blocks
    least = min(columns, LEAST_WIDTH // layout.block[1])
    interval = next(n for n in range(least, columns + 1) if columns % n == 0)
    tall, wide = layout.block[0], layout.block[1] * interval
    boxes = [
        (y, x, min(tall, layout.height - y), min(wide, layout.width - x))
        for y in range(0, layout.height, tall)
        for x in range(0, layout.width, wide)
    ]
    # Of each part its blocks alone, and a marker in the place of its end: it has the header of a
    # JPEG of its own, with the same tables.
    parts = [part[read_layout(part).data_at : -1] for part in turbojpeg.transform(data, boxes)]
    parts = [part + bytes([FIRST_RESTART + n % 8]) for n, part in enumerate(parts)]
    lengths = np.array([len(part) for part in parts])
    index = _segment(INDEX, INDEX_NAME + lengths.astype(">u2").tobytes())
    if lengths.max() > 0xFFFF or len(index) > 0xFFFF + 2:
        return data
    header, scan = whole[0][: layout.scan_at], whole[0][layout.scan_at : layout.data_at]
    header += _segment(INTERVAL, interval.to_bytes(2, "big")) + index
    return header + scan + b"".join(parts)[:-2] + END


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2 & 0xFFFF).to_bytes(2, "big") + content
