"""scikit-learn's handwritten digits as a TFDS data set: PNG bytes in ArrayRecord."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def pixels_and_labels(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """One split of the digits: uint8 [n, 8, 8] and the labels [n]."""
    from sklearn.datasets import load_digits  # Slow to import, and needed just once.

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 0) == test
    return np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8), digits.target[chosen]


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey images of 8x8 pixels in 10 classes (UCI optical digits, the test writers).

    Every fifth image is for testing: 1,437 train, 360 test.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict]]:
        for key, (pixels, label) in enumerate(zip(*pixels_and_labels(test), strict=True)):
            png = io.BytesIO()  # Encoded here: TFDS would need TensorFlow to do it.
            Image.fromarray(pixels).save(png, "PNG")
            yield key, {"image": png.getvalue(), "label": int(label)}
