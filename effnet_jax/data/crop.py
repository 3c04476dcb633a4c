"""Crop boxes and resizing on the host: pure functions of the pixels and a random generator."""

import cv2
import numpy as np

# One image is one thread's work: the pipeline runs many images side by side.
cv2.setNumThreads(0)

INTERPOLATIONS = {
    "bicubic": cv2.INTER_CUBIC,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
}

Box = tuple[int, int, int, int]  # Top, left, height, width, in pixels.


def resize(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """uint8 [h, w, 3] to [size, size, 3]; no antialiasing, as in the reference.

    Of an image [h, w, 4] the last channel is left out.
    """
    if interpolation != "bicubic" or image.shape[:2] == (size, size):
        if image.shape[2] == 4:
            image = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
        if image.shape[:2] == (size, size):
            return np.ascontiguousarray(image)
        return cv2.resize(image, (size, size), interpolation=INTERPOLATIONS[interpolation])
    # OpenCV takes 205 us to make 224 px of three channels and 95 of four, both conversions counted;
    # a value in 300,000 then differs, by 1.
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)


def central_box(height: int, width: int, size: int, padding: int) -> Box:
    """The evaluation crop: the central square of `size / (size + padding)` of the shorter side.

    Source: tensorflow/tpu models/official/efficientnet/preprocessing.py, decode_and_center_crop.
    """
    side = max(1, int(size / (size + padding) * min(height, width)))
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
    """A crop of random area and aspect at a random place, or None where no attempt fits.

    As TensorFlow's sample_distorted_bounding_box with the whole image as the object: the aspect is
    uniform, then the height is uniform between those that give the smallest and the largest area.

    Args:
      height, width: of the image, in pixels.
      area: smallest and largest area, as fractions of the image.
      aspect: smallest and largest width over height.
      rng: source of randomness.
      min_covered: a crop with less than this fraction of the image is tried again.
      attempts: how often to try.
    """
    for _ in range(attempts):
        ratio = rng.uniform(*aspect)
        low, high = (round((fraction * height * width / ratio) ** 0.5) for fraction in area)
        high = min(high, height, int((width + 0.5) / ratio))
        low = min(low, high)
        crop_height = int(rng.integers(low, high + 1))
        crop_width = round(crop_height * ratio)
        covered = crop_height * crop_width / (height * width)
        fits = 0 < crop_height <= height and 0 < crop_width <= width
        if fits and area[0] <= covered <= area[1] and covered >= min_covered:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    return None


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """The box's part of an image [h, w, 3]; a view."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]
