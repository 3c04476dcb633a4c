"""Measure the differences of pixels in docs/fidelity.md: python -m benchmarks.fidelity.

A difference is our value minus TensorFlow's, on scikit-image's photographs as JPEGs of quality 90.
Compared are decoding, resizing the reference's central crop to 224 pixels and rounding the result,
normalisation in bfloat16, and sharpness. TensorFlow must be installed.
"""

import argparse
import io
import os
import pathlib
from collections.abc import Iterator

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import jax.numpy as jnp
import numpy as np
import skimage.data
import tensorflow as tf
from PIL import Image

from benchmarks.make_augmentation_golden import sharpness
from effnet_jax import csv_rows
from effnet_jax.config import NORMALIZATIONS
from effnet_jax.data import augment, crop
from effnet_jax.data.decode import decode_image
from effnet_jax.data.preprocess import normalize
from effnet_jax.data.resizing import resize

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
SIZE, KEPT = (224, 224), 224 / 256
MAGNITUDES = (10, 17, 28)  # Published for RandAugment; AutoAugment v0 has no sharpness.


def differences(image: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, unit and ours minus theirs of each comparison for a photo, uint8 [h, w, 3]."""
    Image.fromarray(image).save(buffer := io.BytesIO(), "JPEG", quality=90)
    ours = decode_image(buffer.getvalue())[..., :3]
    yield "decoded", "levels", ours - tf.image.decode_jpeg(buffer.getvalue()).numpy().astype(float)

    part = np.ascontiguousarray(crop.crop(ours, crop.central_box(*ours.shape[:2], KEPT)))
    unclipped = tf.compat.v1.image.resize_bicubic(part[None], SIZE)[0].numpy()
    floats, exact = unclipped.clip(0, 255), resize(part, SIZE, "bicubic_tf1")
    yield "bicubic for bicubic_tf1", "levels", resize(part, SIZE, "bicubic") - floats
    yield "uint8 for floats", "levels", exact - floats
    yield "0 to 255 for floats beyond", "levels", floats - unclipped
    yield "nearest for truncate", "levels", exact - floats.astype(np.uint8).astype(float)

    mean, std = NORMALIZATIONS["imagenet"]
    theirs = tf.cast(exact, tf.bfloat16) - tf.constant([255 * m for m in mean], tf.bfloat16)
    theirs = tf.cast(theirs / tf.constant([255 * s for s in std], tf.bfloat16), tf.float32).numpy()
    made = jnp.asarray(normalize(exact, mean, std), jnp.bfloat16)
    yield "normalised in bfloat16", "standard deviations", np.asarray(made, np.float32) - theirs

    for magnitude in MAGNITUDES:
        factor = magnitude / 10 * 1.8 + 0.1
        theirs = sharpness(tf.constant(exact), factor).numpy().astype(float)
        made = augment.sharpness(exact, factor)
        yield f"sharpness, magnitude {magnitude}", "levels", made - theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=pathlib.Path, default=pathlib.Path("results/fidelity.csv"))
    args = parser.parse_args()
    rows, found = [], {}
    for name in PHOTOS:
        for what, unit, difference in differences(getattr(skimage.data, name)()):
            found.setdefault((what, unit), []).append(difference.ravel())
    for (what, unit), parts in found.items():
        means, whole = [np.abs(part).mean() for part in parts], np.concatenate(parts)
        numbers = {
            "different": np.mean(whole != 0),
            "mean_absolute": np.abs(whole).mean(),
            "mean_absolute_least": min(means),
            "mean_absolute_most": max(means),
            "mean": whole.mean(),
            "largest": np.abs(whole).max(),
        }
        shown = {key: f"{value:.4g}" for key, value in numbers.items()}
        rows.append({"what": what, "unit": unit, **shown, "photographs": len(PHOTOS)})
        rows[-1] |= {"tensorflow": tf.__version__, **csv_rows.describe_machine()}
        print(what, unit, shown)
    csv_rows.append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
