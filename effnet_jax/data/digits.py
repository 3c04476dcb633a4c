"""scikit-learn's handwritten digits as PNG images, made in memory when they are asked for."""

import functools
import io
import types
from typing import ClassVar

import numpy as np
from PIL import Image

from effnet_jax.data.sources import Record, Source
from effnet_jax.errors import UserError


@functools.cache
def pixels_and_labels(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """One split of the digits: uint8 [n, 8, 8] and the labels [n]."""
    from sklearn.datasets import load_digits  # Slow to import.

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 0) == test
    return np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8), digits.target[chosen]


class Digits(Source):
    """1,797 grey images of 8x8 pixels in 10 classes (UCI optical digits, the test writers).

    Every fifth image is for testing: 1,437 train, 360 test. Splits are written as in TFDS:
    "train", "train[:512]", "train+test".
    """

    SIZES: ClassVar = {"train": 1437, "test": 360}

    def __init__(self, split: str):
        from tensorflow_datasets.core import ReadInstruction

        sizes = {name: types.SimpleNamespace(num_examples=n) for name, n in self.SIZES.items()}
        try:
            parts = ReadInstruction.from_spec(split).to_absolute(sizes)
        except ValueError as error:
            raise UserError(f"no split {split!r} of the digits, which have test, train") from error
        named = [(part, range(self.SIZES[part.splitname])) for part in parts]
        records = [(part.splitname, n) for part, all in named for n in all[part.from_ : part.to]]
        super().__init__(tuple("0123456789"), records)
        self._made = {}

    def __getitem__(self, index: int) -> Record:
        if index not in self._made:
            pixels, label = self.draw(*self._records[index])
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            self._made[index] = {"image": png.getvalue(), "label": int(label)}
        return self._made[index]

    def describe(self, index: int) -> str:
        split, number = self._records[index]
        return f"image {number} of the digits' {split}"

    def draw(self, split: str, index: int) -> tuple[np.ndarray, int]:
        """Image `index` of a split, uint8 [h, w], and its label."""
        pixels, labels = pixels_and_labels(split == "test")
        return pixels[index], labels[index]
