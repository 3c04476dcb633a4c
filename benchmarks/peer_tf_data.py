"""The tf.data peer, which makes the reference's training images.

AutoAugment is either the reference's (`reference_autoaugment.py`) or that of this module, which
makes the same images with fewer and cheaper TensorFlow ops.
"""

import argparse
import math
import os
from collections.abc import Callable

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import tensorflow as tf

from benchmarks import measure, reference_autoaugment


def blend(first: tf.Tensor, second: tf.Tensor, factor: float) -> tf.Tensor:
    """Interpolate or extrapolate: the first image at factor 0, the second at factor 1."""
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    return tf.cast(tf.clip_by_value(first + factor * (second - first), 0, 255), tf.uint8)


def transform(image: tf.Tensor, *matrix: float | tf.Tensor) -> tf.Tensor:
    """Transform an image with the first six coefficients of a projection, to the nearest pixel."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([tf.cast(value, tf.float32) for value in (*matrix, 0, 0)])[None],
        output_shape=[measure.RESOLUTION] * 2,
        fill_value=float(measure.FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    radians = degrees * (math.pi / 180)
    cos, sin, middle = tf.cos(radians), tf.sin(radians), (measure.RESOLUTION - 1) / 2
    x, y = middle - cos * middle + sin * middle, middle - sin * middle - cos * middle
    return transform(image, cos, -sin, x, sin, cos, y)


def equalize(image: tf.Tensor) -> tf.Tensor:
    def one(channel: tf.Tensor) -> tf.Tensor:
        values = tf.cast(channel, tf.int32)
        histogram = tf.histogram_fixed_width(values, [0, 255], 256)
        step = (tf.size(values) - histogram[tf.reduce_max(values)]) // 255
        table = (tf.cumsum(histogram, exclusive=True) + step // 2) // tf.maximum(step, 1)
        table = tf.where(step == 0, tf.range(256), tf.clip_by_value(table, 0, 255))
        return tf.gather(tf.cast(table, tf.uint8), values)

    return tf.stack([one(image[:, :, channel]) for channel in range(3)], 2)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float32)
    high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float32)
    scale = tf.where(high > low, 255 / (high - low), 1)
    offset = tf.where(high > low, -low * scale, 0)
    stretched = tf.cast(image, tf.float32) * scale + offset
    return tf.cast(tf.clip_by_value(stretched, 0, 255), tf.uint8)


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
    return blend(tf.image.rgb_to_grayscale(image), image, factor)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - bits), tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    # 255 - image is an exclusive or, which takes half the time of tf.where.
    above = tf.cast(image >= threshold, tf.uint8)
    return tf.bitwise.bitwise_xor(image, above * tf.constant(255, tf.uint8))


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    # The sum fits uint8, because only pixels below 128 are increased, by at most 110.
    return image + tf.cast(image < 128, tf.uint8) * tf.constant(addition, tf.uint8)


# Each operation takes the image and the argument from `measure.LEVELS`.
OPERATIONS = {
    "AutoContrast": lambda image, _: autocontrast(image),
    "Equalize": lambda image, _: equalize(image),
    "Invert": lambda image, _: 255 - image,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Rotate": rotate,
    "ShearX": lambda image, shear: transform(image, 1, shear, 0, 0, 1, 0),
    "ShearY": lambda image, shear: transform(image, 1, 0, 0, shear, 1, 0),
    "TranslateY": lambda image, pixels: transform(image, 1, 0, 0, 0, 1, pixels),
}


def apply(image: tf.Tensor, name: str, probability: float, level: float) -> tf.Tensor:
    """Apply an operation with a probability."""

    def changed() -> tf.Tensor:
        argument = measure.LEVELS[name](level) if name in measure.LEVELS else None
        if name in measure.SIGNED:
            argument *= tf.where(tf.random.uniform([]) < 0.5, -1.0, 1.0)
        return OPERATIONS[name](image, argument)

    return tf.cond(tf.random.uniform([]) < probability, changed, lambda: image)


def autoaugment(image: tf.Tensor) -> tf.Tensor:
    """Apply one of the 25 pairs of operations."""

    def branch(pair: tuple) -> Callable[[], tf.Tensor]:
        return lambda: apply(apply(image, *pair[0]), *pair[1])

    # One switch, instead of the reference's 25 conditions in sequence.
    chosen = tf.random.uniform([], maxval=len(measure.AUTOAUGMENT), dtype=tf.int32)
    return tf.switch_case(chosen, [branch(pair) for pair in measure.AUTOAUGMENT])


AUTOAUGMENT = {"reference": reference_autoaugment.autoaugment, "faster": autoaugment}


def load(record: tf.Tensor, policy: Callable[[tf.Tensor], tf.Tensor] | None) -> tf.Tensor:
    """A training image, uint8 [RESOLUTION, RESOLUTION, 3], from a TFRecord."""
    features = {"image": tf.io.FixedLenFeature([], tf.string)}
    data = tf.io.parse_single_example(record, features)["image"]
    shape = tf.image.extract_jpeg_shape(data)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        min_object_covered=0.1,
        aspect_ratio_range=measure.CROP_ASPECT,
        area_range=measure.CROP_AREA,
        max_attempts=measure.CROP_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    box = tf.stack([begin[0], begin[1], size[0], size[1]])
    # If no attempt succeeded, the box is the whole image, and the central square is used instead.
    side = tf.cast(0.875 * tf.cast(tf.minimum(shape[0], shape[1]), tf.float32), tf.int32)
    central = tf.stack([(shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2, side, side])
    box = tf.where(tf.reduce_all(size[:2] == shape[:2]), central, box)
    image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
    image = tf.compat.v1.image.resize_bicubic(image[None], [measure.RESOLUTION] * 2)[0]
    image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
    image = tf.image.random_flip_left_right(image)
    image.set_shape([measure.RESOLUTION, measure.RESOLUTION, 3])
    return policy(image) if policy else image


def batches(args: argparse.Namespace) -> tf.data.Dataset:
    options = tf.data.Options()
    options.threading.private_threadpool_size = args.threads
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = False
    dataset = tf.data.TFRecordDataset(os.path.join(args.photos, "train.tfrecord"))
    dataset = dataset.repeat().shuffle(512)
    policy = AUTOAUGMENT[args.operations] if args.policy == "autoaugment" else None
    dataset = dataset.map(lambda record: load(record, policy), tf.data.AUTOTUNE)
    dataset = dataset.batch(measure.BATCH_SIZE, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--operations", choices=tuple(AUTOAUGMENT), default="reference")
    flags = measure.parse_flags(parser)
    measure.report(batches(flags), flags, f"tensorflow {tf.__version__}", crop_decode=True)
