"""Crop boxes as pure functions of an image's size and a random generator."""

import math

import numpy as np

Box = tuple[int, int, int, int]  # Top, left, height, width, in pixels.


def central_box(height: int, width: int, kept: float) -> Box:
    """The central square whose side is the fraction `kept` of the shorter side.

    Source: tensorflow/tpu models/official/efficientnet/preprocessing.py, decode_and_center_crop.
    """
    side = max(1, int(kept * min(height, width)))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
    min_covered: float = 0.1,
    attempts: int = 10,
) -> Box | None:
    """A crop of random area, aspect and position, or None if none of the attempts fits.

    The aspect, width over height, is uniform in `aspect`. The height is uniform between those that
    the limits of `area` give. `area` and `min_covered` are fractions of the image.

    Source: TensorFlow's core/kernels/image/sample_distorted_bounding_box_op.cc, with the whole
    image as the object. A crop reaches the last row or column of the image only if it has the full
    height or width, because the offset is always below the difference of the sizes.
    """
    least, most = (fraction * height * width for fraction in area)
    for _ in range(attempts):
        ratio = rng.uniform(*aspect)
        low, high = (round(math.sqrt(pixels / ratio)) for pixels in (least, most))
        if round(high * ratio) > width:
            high = int((width + 0.5) / ratio)
        high = min(high, height)
        h = int(rng.integers(min(low, high), high + 1))
        # One row more or less if rounding has moved the area out of its range.
        h += h * round(h * ratio) < least
        h -= h * round(h * ratio) > most
        w = round(h * ratio)
        fits = 0 < h <= height and 0 < w <= width and least <= h * w <= most
        if fits and h * w >= min_covered * height * width:
            top, left = (int(rng.integers(max(1, space))) for space in (height - h, width - w))
            return top, left, h, w
    return None


def middle(image: np.ndarray, most: int = 16) -> np.ndarray:
    """A view of the middle of an image [h, w, 3], at most `most` times as long as its shorter side.

    Resizing all of a very long image would take seconds and gigabytes.
    """
    height, width = image.shape[:2]
    longest = most * min(height, width)
    # A difference that is even keeps the middle in place.
    h, w = (side if side <= longest else longest - (side - longest) % 2 for side in (height, width))
    return crop(image, ((height - h) // 2, (width - w) // 2, h, w))


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """A view of the part of an image [h, w, 3] in a box."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]
