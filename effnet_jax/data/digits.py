"""scikit-learn's handwritten digits as a TFDS data set: PNG bytes in ArrayRecord."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def pixels_and_labels(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """One split of the digits: uint8 [n, 8, 8] and the labels [n]."""
    from sklearn.datasets import load_digits  # Slow to import.

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 0) == test
    return np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8), digits.target[chosen]


def describe(builder: tfds.core.DatasetBuilder, side: int) -> tfds.core.DatasetInfo:
    """TFDS's description of a data set of square grey PNGs with a digit each."""
    image = tfds.features.Image(shape=(side, side, 1), encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=10)
    features = tfds.features.FeaturesDict({"image": image, "label": label})
    return tfds.core.DatasetInfo(builder=builder, description=builder.__doc__, features=features)


def example(pixels: np.ndarray, label: int) -> dict[str, bytes | int]:
    """A record; the image is encoded here, because TFDS would need TensorFlow to do it."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return {"image": png.getvalue(), "label": int(label)}


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey images of 8x8 pixels in 10 classes (UCI optical digits, the test writers).

    Every fifth image is for testing: 1,437 train, 360 test.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return describe(self, 8)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict]]:
        for key, (pixels, label) in enumerate(zip(*pixels_and_labels(test), strict=True)):
            yield key, example(pixels, label)
