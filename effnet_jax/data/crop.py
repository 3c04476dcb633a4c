"""Crop boxes: pure functions of an image's size and a random generator."""

import numpy as np

Box = tuple[int, int, int, int]  # Top, left, height, width, in pixels.


def central_box(height: int, width: int, kept: float) -> Box:
    """The central square of the fraction `kept` of the shorter side.

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
) -> Box | None:
    """A crop of random area and aspect at a random place, or None where none of ten tries fits.

    As TensorFlow's sample_distorted_bounding_box with the whole image as the object: the `aspect`,
    width over height, is uniform, then the height between those of the smallest and the largest
    `area`. This and `min_covered` are fractions of the image.
    """
    for _ in range(10):
        ratio = rng.uniform(*aspect)
        low, high = (round((fraction * height * width / ratio) ** 0.5) for fraction in area)
        high = min(high, height, int((width + 0.5) / ratio))
        low = min(low, high)
        crop_height = int(rng.integers(low, high + 1))
        crop_width = round(crop_height * ratio)
        covered = crop_height * crop_width / (height * width)
        fits = 0 < crop_height <= height and 0 < crop_width <= width
        if fits and max(area[0], min_covered) <= covered <= area[1]:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    return None


def middle(image: np.ndarray, most: int = 16) -> np.ndarray:
    """The middle of an image [h, w, 3], at most `most` times as long as its shorter side; a view.

    Enlarging all of a very long image would take seconds and gigabytes.
    """
    height, width = image.shape[:2]
    longest = most * min(height, width)
    # As even or odd as the side itself, so that the middle stays in place.
    h, w = (side if side <= longest else longest - (side - longest) % 2 for side in (height, width))
    return crop(image, ((height - h) // 2, (width - w) // 2, h, w))


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image [h, w, 3] in a box; a view."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]
