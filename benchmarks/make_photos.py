"""Make JPEGs with ImageNet's sizes from the photographs that come with scikit-image.

ILSVRC 2012's training images have 469x387 pixels and 110 KB on average; most have a long side of
500. The images written here are random parts of ten photographs, rescaled, mirrored and with
changed brightness; the number of an image determines them. Writes DIR/train/CLASS/*.jpg and
DIR/val/CLASS/*.jpg, and the training images also as DIR/train.tfrecord.
"""

import argparse
import io
import pathlib

import numpy as np
import skimage
import tensorflow as tf
from PIL import Image

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
TRAIN, VAL = 512, 72
# Width, height and share of ImageNet's usual sizes; the last row stands for all others.
SIZES = (
    (500, 375, 0.40),
    (375, 500, 0.14),
    (500, 333, 0.16),
    (333, 500, 0.06),
    (500, 400, 0.10),
    (500, 500, 0.04),
    (None, None, 0.10),
)
OTHER_SIDES = (250, 750)  # Pixels.
SCALES = (0.5, 0.9)  # Of a photograph, if that leaves it large enough for the crop.
BRIGHTNESS = (0.8, 1.2)
QUALITIES = (96, 98)  # Chosen so that the mean number of bytes is ImageNet's.
FULL_COLOUR = 0.1  # The share of images without subsampled colour.


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """A random width and height of an image, in pixels."""
    width, height, _ = SIZES[rng.choice(len(SIZES), p=[share for *_, share in SIZES])]
    if width is None:
        width, height = (int(side) for side in rng.integers(*OTHER_SIDES, size=2))
    return width, height


def draw(photo: Image.Image, rng: np.random.Generator) -> bytes:
    """A JPEG of a random part of a photograph."""
    width, height = random_size(rng)
    # Enlarge the photograph no more than the crop needs.
    scale = max(rng.uniform(*SCALES), width / photo.width, height / photo.height)
    box_width, box_height = min(width / scale, photo.width), min(height / scale, photo.height)
    left = rng.uniform(0, photo.width - box_width)
    top = rng.uniform(0, photo.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    image = photo.resize((width, height), Image.Resampling.BICUBIC, box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    brightness = rng.uniform(*BRIGHTNESS)
    image = image.point(lambda value: value * brightness)
    encoded = io.BytesIO()
    subsampling = "4:4:4" if rng.random() < FULL_COLOUR else "4:2:0"
    quality = int(rng.integers(*QUALITIES, endpoint=True))
    image.save(encoded, "JPEG", quality=quality, subsampling=subsampling)
    return encoded.getvalue()


def write_split(folder: pathlib.Path, count: int, seed: int) -> list[tuple[bytes, int]]:
    """Write the images of one split; return their bytes and labels."""
    photos = [Image.open(pathlib.Path(skimage.data_dir) / name).convert("RGB") for name in PHOTOS]
    images = []
    for index in range(count):
        label = index % len(photos)
        path = folder / pathlib.Path(PHOTOS[label]).stem / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append((draw(photos[label], np.random.default_rng((seed, index))), label))
        path.write_bytes(images[-1][0])
    return images


def write_tfrecord(path: pathlib.Path, images: list[tuple[bytes, int]]) -> None:
    """Write the images as a TFRecord with the features that TFDS and the reference use."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for data, label in images:
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=pathlib.Path)
    directory = parser.parse_args().directory
    images = write_split(directory / "train", TRAIN, seed=0)
    write_split(directory / "val", VAL, seed=1)
    write_tfrecord(directory / "train.tfrecord", images)


if __name__ == "__main__":
    main()
