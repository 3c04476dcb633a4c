"""scikit-learn's handwritten digits as a TFDS data set: PNG bytes in ArrayRecord."""

import io
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def pixels_and_labels(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """One split of the digits: uint8 [n, 8, 8] and the labels [n]."""
    from sklearn.datasets import load_digits  # Slow to import.

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 0) == test
    return np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8), digits.target[chosen]


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey images of 8x8 pixels in 10 classes (UCI optical digits, the test writers).

    Every fifth image is for testing: 1,437 train, 360 test.
    """

    VERSION = tfds.core.Version("1.0.0")
    SIDE = 8

    def draw(self, split: str) -> Iterable[tuple[np.ndarray, int]]:
        """The images of a split, uint8 [SIDE, SIDE], with their labels."""
        return zip(*pixels_and_labels(split == "test"), strict=True)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(self.SIDE, self.SIDE, 1), encoding_format="png")
        label = tfds.features.ClassLabel(num_classes=10)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for key, (pixels, label) in enumerate(self.draw(split)):
            png = io.BytesIO()  # Encoded here: TFDS would need TensorFlow to do it.
            Image.fromarray(pixels).save(png, "PNG")
            yield key, {"image": png.getvalue(), "label": int(label)}
