"""scikit-learn's handwritten digits as images, drawn in memory on demand.

There are three data sets: the digits as they are; cluttered digits, at random places and scales
among parts of other digits; and two digits side by side, in 100 classes. Small digits need
resolution; telling a digit from the pieces around it needs depth; many classes need width.
"""

import functools
import importlib.util
import pathlib
import types
from typing import ClassVar

import cv2
import numpy as np

from effnet_jax.data.sources import Record, Source
from effnet_jax.errors import UserError

# Settings of the cluttered digits. A pair of numbers is a range.
CANVAS = 96  # Side of the image, in pixels.
EXAMPLES = {"train": 8000, "test": 2000}
SIDES = (32, 80)  # Side to which the 8x8 digit is enlarged, in pixels.
CONTRAST = (0.7, 1.0)  # Brightness of the digit.
PARTS = (2, 5)  # Number of parts of other digits.
PART_SIDES = (3, 4)  # Side of a part, in pixels of the 8x8 digit that it is cut from.
PART_CONTRAST = (0.2, 0.5)
NOISE = 8.0  # Standard deviation of the noise, for levels of 0 to 255.
# Settings of the pairs; the others are those of the cluttered digits.
PAIR_EXAMPLES = {"train": 16000, "test": 2000}
PAIR_CANVAS = 96
PAIR_SIDES = (24, 44)  # Pixels; each digit has half of the canvas.
PAIR_PARTS = (1, 3)


@functools.cache
def pixels_and_labels(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """One split of the digits: images, uint8 [n, 8, 8], and labels [n]."""
    # Like sklearn.datasets.load_digits, whose import takes longer than everything else here.
    package = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
    chosen = (np.arange(len(labels)) % 5 == 0) == test
    return np.round(images[chosen] * (255 / 16)).astype(np.uint8), labels[chosen]


class Digits(Source):
    """1,797 grey images of 8x8 pixels in 10 classes (UCI optical digits, the test writers).

    Every fifth image is in the split test: 1,437 train, 360 test. Splits are written as in TFDS.
    """

    SIZES: ClassVar = {"train": 1437, "test": 360}
    CLASSES: ClassVar = tuple("0123456789")

    def __init__(self, split: str):
        super().__init__(self.CLASSES, self._records_of(split))
        self._made = {}

    def _records_of(self, split: str) -> list[tuple[str, int]]:
        if split in self.SIZES:
            return [(split, number) for number in range(self.SIZES[split])]
        from tensorflow_datasets.core import ReadInstruction  # Slow to import.

        sizes = {name: types.SimpleNamespace(num_examples=n) for name, n in self.SIZES.items()}
        try:
            parts = ReadInstruction.from_spec(split).to_absolute(sizes)
        except ValueError as error:
            text = f"no split {split!r} in data set 'digits', which has test, train"
            raise UserError(text) from error
        named = [(part, range(self.SIZES[part.splitname])) for part in parts]
        return [(part.splitname, n) for part, all in named for n in all[part.from_ : part.to]]

    def __getitem__(self, index: int) -> Record:
        if index not in self._made:
            self._made[index] = self.draw(*self._records[index])
        pixels, label = self._made[index]
        return {"image": cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), "label": int(label)}

    def shared(self, split: str) -> int:
        return len({*self._records} & {*self._records_of(split)})

    def describe(self, index: int) -> str:
        split, number = self._records[index]
        return f"image {number} of the digits' {split} split"

    def draw(self, split: str, index: int) -> tuple[np.ndarray, int]:
        """Image `index` of a split, uint8 [h, w], and its label."""
        pixels, labels = pixels_and_labels(split == "test")
        return pixels[index], labels[index]


def place(canvas: np.ndarray, pixels: np.ndarray, scale: float, rng: np.random.Generator) -> None:
    """Draws `pixels` [h, w], enlarged by `scale`, at a random place; the brighter pixel is kept."""
    height, width = (round(side * scale) for side in pixels.shape)
    enlarged = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    top = int(rng.integers(0, canvas.shape[0] - height + 1))
    left = int(rng.integers(0, canvas.shape[1] - width + 1))
    window = canvas[top : top + height, left : left + width]
    np.maximum(window, enlarged, out=window)


def add_parts(
    canvas: np.ndarray,
    digits: np.ndarray,
    count: tuple[int, int],
    sides: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Draws `count` (fewest, most) darker parts of digits at the scale of digits of `sides`."""
    low, high = np.log(np.array(sides) / digits.shape[1])
    for _ in range(rng.integers(*count, endpoint=True)):
        side = rng.integers(PART_SIDES[0], PART_SIDES[1], endpoint=True)
        top, left = rng.integers(0, digits.shape[1] - side, 2, endpoint=True)
        part = digits[rng.integers(len(digits)), top : top + side, left : left + side]
        place(canvas, part * rng.uniform(*PART_CONTRAST), np.exp(rng.uniform(low, high)), rng)


def add_digit(
    canvas: np.ndarray, digits: np.ndarray, sides: tuple[int, int], rng: np.random.Generator
) -> int:
    """Draws a random digit with a side in `sides` (least, most), and returns its index."""
    low, high = np.log(np.array(sides) / digits.shape[1])
    chosen = int(rng.integers(len(digits)))
    digit = digits[chosen] * rng.uniform(*CONTRAST)
    place(canvas, digit, np.exp(rng.uniform(low, high)), rng)
    return chosen


def with_noise(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds noise to the canvas and converts it to uint8."""
    return (canvas + rng.normal(0, NOISE, canvas.shape)).round().clip(0, 255).astype(np.uint8)


def draw(index: int, digits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Cluttered image `index`, uint8 [CANVAS, CANVAS], and the label of its whole digit.

    It is drawn from `digits`, float32 [n, 8, 8] in 0..255, with `labels` [n]. Each split has its
    own `seed`.
    """
    rng, canvas = np.random.default_rng((seed, index)), np.zeros((CANVAS, CANVAS), np.float32)
    add_parts(canvas, digits, PARTS, SIDES, rng)
    chosen = add_digit(canvas, digits, SIDES, rng)
    return with_noise(canvas, rng), int(labels[chosen])


def draw_pair(
    index: int, digits: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, int]:
    """Pair `index`, uint8 [PAIR_CANVAS, PAIR_CANVAS], and its label; arguments as for `draw`."""
    rng = np.random.default_rng((seed, index))
    canvas = np.zeros((PAIR_CANVAS, PAIR_CANVAS), np.float32)
    add_parts(canvas, digits, PAIR_PARTS, PAIR_SIDES, rng)
    halves = np.split(canvas, 2, axis=1)  # Views.
    tens, ones = (labels[add_digit(half, digits, PAIR_SIDES, rng)] for half in halves)
    return with_noise(canvas, rng), int(10 * tens + ones)


class ClutteredDigits(Digits):
    """Grey images of 96x96 pixels: one whole digit of 32 to 80 pixels among parts of others.

    There are 8,000 for training and 2,000 for testing, drawn from the training and test images of
    `Digits`, so that no digit, whole or in parts, is in both splits.
    """

    SIZES = EXAMPLES
    DRAW = staticmethod(draw)

    def draw(self, split: str, index: int) -> tuple[np.ndarray, int]:
        digits, labels = pixels_and_labels(split == "test")
        return self.DRAW(index, digits.astype(np.float32), labels, list(EXAMPLES).index(split))


class DigitPairs(ClutteredDigits):
    """Grey images of 96x96 pixels with two digits of 24 to 44 pixels, and parts of others.

    The class is the number that they form, "00" to "99". There are 16,000 for training and 2,000
    for testing, drawn from the digits of their split as in `ClutteredDigits`.
    """

    SIZES = PAIR_EXAMPLES
    CLASSES = tuple(f"{number:02d}" for number in range(100))
    DRAW = staticmethod(draw_pair)
