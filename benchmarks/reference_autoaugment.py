"""AutoAugment for tf.data with the TensorFlow ops of the reference, in the reference's order.

The reference, tensorflow/tpu models/official/efficientnet/autoaugment.py, is for TensorFlow 1; this
is a rewrite for TensorFlow 2. ImageProjectiveTransformV3 has the kernel of tf.contrib's transform.
"""

import functools
import math

import tensorflow as tf

from benchmarks import measure

where = tf.compat.v1.where  # As in the reference: a one-dimensional condition selects rows.


def chance(probability: float) -> tf.Tensor:
    """A random boolean that is true with a probability."""
    return tf.cast(tf.floor(tf.random.uniform([]) + probability), tf.bool)


def blend(first: tf.Tensor, second: tf.Tensor, factor: float) -> tf.Tensor:
    """Interpolate or extrapolate: the first image at factor 0, the second at factor 1."""
    if factor in (0.0, 1.0):
        return second if factor else first
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    difference = second - first
    mixed = first + factor * difference
    if factor > 1.0:  # For factors from 0 to 1, all values fit uint8.
        mixed = tf.clip_by_value(mixed, 0.0, 255.0)
    return tf.cast(mixed, tf.uint8)


def transform(image: tf.Tensor, coefficients: tf.Tensor | list[float]) -> tf.Tensor:
    """Project an image to the nearest pixels; a fourth channel marks pixels from outside."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    marked = tf.concat([image, tf.ones([height, width, 1], tf.uint8)], 2)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=marked[None],
        transforms=tf.reshape(tf.convert_to_tensor(coefficients, tf.float32), [1, 8]),
        output_shape=tf.stack([height, width]),
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]
    pixels = tf.reshape(moved, [-1, 4])
    fill = tf.constant([measure.FILL] * 3 + [1], tf.uint8)
    pixels = where(tf.equal(pixels[:, 3], 0), tf.ones_like(pixels) * fill, pixels)
    return tf.slice(tf.reshape(pixels, tf.shape(moved)), [0, 0, 0], [height, width, 3])


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    radians = degrees * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    bottom = tf.cast(tf.shape(image)[0] - 1, tf.float32)
    right = tf.cast(tf.shape(image)[1] - 1, tf.float32)
    x = (right - (cos * right - sin * bottom)) / 2
    y = (bottom - (sin * right + cos * bottom)) / 2
    return transform(image, tf.stack([cos, -sin, x, sin, cos, y, 0.0, 0.0]))


def equalize(image: tf.Tensor) -> tf.Tensor:
    def one(number: int) -> tf.Tensor:
        values = tf.cast(image[:, :, number], tf.int32)
        histogram = tf.histogram_fixed_width(values, [0, 255], nbins=256)
        filled = tf.reshape(tf.gather(histogram, tf.where(tf.not_equal(histogram, 0))), [-1])
        step = (tf.reduce_sum(filled) - filled[-1]) // 255

        def looked_up() -> tf.Tensor:
            table = (tf.cumsum(histogram) + step // 2) // step
            table = tf.clip_by_value(tf.concat([[0], table[:-1]], 0), 0, 255)
            return tf.gather(table, values)

        return tf.cast(tf.cond(tf.equal(step, 0), lambda: values, looked_up), tf.uint8)

    return tf.stack([one(number) for number in range(3)], 2)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    def one(channel: tf.Tensor) -> tf.Tensor:
        low = tf.cast(tf.reduce_min(channel), tf.float32)
        high = tf.cast(tf.reduce_max(channel), tf.float32)

        def stretched() -> tf.Tensor:
            scale = 255.0 / (high - low)
            values = tf.cast(channel, tf.float32) * scale + -low * scale
            return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)

        return tf.cond(high > low, stretched, lambda: channel)

    return tf.stack([one(image[:, :, number]) for number in range(3)], 2)


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
    grey = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))
    return blend(grey, image, factor)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    shift = tf.constant(8 - bits, tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    return where(image < threshold, image, 255 - image)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    added = tf.clip_by_value(tf.cast(image, tf.int64) + addition, 0, 255)
    return where(image < 128, tf.cast(added, tf.uint8), image)


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
    "ShearX": lambda image, shear: transform(image, [1.0, shear, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
    "ShearY": lambda image, shear: transform(image, [1.0, 0.0, 0.0, shear, 1.0, 0.0, 0.0, 0.0]),
    "TranslateY": lambda image, pixels: transform(
        image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels, 0.0, 0.0]
    ),
}


def draw_argument(name: str, level: float) -> float | tf.Tensor | None:
    """The argument of an operation, negated half of the time for those in `measure.SIGNED`."""
    argument = measure.LEVELS[name](level) if name in measure.LEVELS else None
    if name not in measure.SIGNED:
        return argument
    return tf.cond(chance(0.5), lambda: tf.constant(argument), lambda: tf.constant(-argument))


def apply_pair(image: tf.Tensor, pair: tuple[tuple, tuple], arguments: list) -> tf.Tensor:
    """Apply two operations, each with its own probability."""
    (first, probability, _), (second, second_probability, _) = pair
    image = tf.cond(
        chance(probability),
        lambda: OPERATIONS[first](image, arguments[0]),
        lambda: image,
    )
    return tf.cond(
        chance(second_probability),
        lambda: OPERATIONS[second](image, arguments[1]),
        lambda: image,
    )


def autoaugment(image: tf.Tensor) -> tf.Tensor:
    """Apply one of the 25 pairs of operations, selected by a condition for each pair."""
    # As in the reference, signs are drawn for all pairs, outside the conditions.
    arguments = [
        [draw_argument(name, level) for name, _, level in pair] for pair in measure.AUTOAUGMENT
    ]
    chosen = tf.random.uniform([], maxval=len(measure.AUTOAUGMENT), dtype=tf.int32)
    for number, pair in enumerate(measure.AUTOAUGMENT):
        apply = functools.partial(apply_pair, image, pair, arguments[number])
        image = tf.cond(tf.equal(number, chosen), apply, functools.partial(tf.identity, image))
    return image
