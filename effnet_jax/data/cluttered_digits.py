"""scikit-learn's handwritten digits at random places and scales among parts of other digits.

Small digits need resolution; telling a digit from the pieces around it needs depth and width.
Everything follows from the index of the image, so the data set is the same wherever it is made.
"""

import cv2
import numpy as np

from effnet_jax.data.digits import Digits, pixels_and_labels

CANVAS = 96  # Side, in pixels.
EXAMPLES = {"train": 8000, "test": 2000}
SIDES = (32, 80)  # Pixels: the smallest and the largest that the 8x8 digit becomes.
CONTRAST = (0.7, 1.0)  # Brightness of the digit.
PARTS = (2, 5)  # Fewest and most parts of other digits.
PART_SIDES = (3, 4)  # Pixels of the 8x8 digit that a part is cut from.
PART_CONTRAST = (0.2, 0.5)
NOISE = 8.0  # Standard deviation of each pixel's noise, of 255.


def place(canvas: np.ndarray, pixels: np.ndarray, scale: float, rng: np.random.Generator) -> None:
    """Draws `pixels` [h, w], enlarged by `scale`, at a random place; the brighter pixels show."""
    height, width = (round(side * scale) for side in pixels.shape)
    enlarged = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    top = int(rng.integers(0, canvas.shape[0] - height + 1))
    left = int(rng.integers(0, canvas.shape[1] - width + 1))
    window = canvas[top : top + height, left : left + width]
    np.maximum(window, enlarged, out=window)


def draw(index: int, digits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Image number `index`, uint8 [CANVAS, CANVAS], and the label of the one whole digit in it.

    It is made of `digits`, float32 [n, 8, 8] in 0 to 255, with `labels` [n]; each split has a seed.
    """
    rng = np.random.default_rng((seed, index))
    canvas = np.zeros((CANVAS, CANVAS), np.float32)
    low, high = np.log(np.array(SIDES) / digits.shape[1])
    for _ in range(rng.integers(PARTS[0], PARTS[1], endpoint=True)):
        side = rng.integers(PART_SIDES[0], PART_SIDES[1], endpoint=True)
        top, left = rng.integers(0, digits.shape[1] - side, 2, endpoint=True)
        part = digits[rng.integers(len(digits)), top : top + side, left : left + side]
        place(canvas, part * rng.uniform(*PART_CONTRAST), np.exp(rng.uniform(low, high)), rng)
    chosen = rng.integers(len(digits))
    digit = digits[chosen] * rng.uniform(*CONTRAST)
    place(canvas, digit, np.exp(rng.uniform(low, high)), rng)
    noisy = canvas + rng.normal(0, NOISE, canvas.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), int(labels[chosen])


class ClutteredDigits(Digits):
    """Grey images of 96x96 pixels: one whole digit of 32 to 80 pixels among parts of others.

    8,000 for training and 2,000 for testing, made of the training and test images of `Digits`: no
    digit, whole or in parts, is in both.
    """

    SIZES = EXAMPLES

    def draw(self, split: str, index: int) -> tuple[np.ndarray, int]:
        digits, labels = pixels_and_labels(split == "test")
        return draw(index, digits.astype(np.float32), labels, seed=list(EXAMPLES).index(split))
