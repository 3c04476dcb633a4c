"""Write tests/golden/augmentation.npz: the reference's operations, computed by TensorFlow.

Command: python benchmarks/make_augmentation_golden.py (TensorFlow must be installed).

Each operation of tensorflow/tpu models/official/efficientnet/autoaugment.py is rebuilt here from
the TensorFlow ops that it uses. The image ops of tf.contrib no longer exist, but their kernel is
available as ImageProjectiveTransformV3. Numbers that don't fit uint8, a threshold of 256 and a
shift of -3, are wrapped by TensorFlow to 0 and 253.
"""

import math
import pathlib

import numpy as np
import tensorflow as tf

HEIGHT, WIDTH = 20, 28
# AutoAugment's levels and RandAugment's at magnitudes 17 and 28.
LEVELS = (4, 9, 17, 28)
TRANSLATE = 12.5  # Pixels at level 10: small enough for the image, and some shifts end in .5.


def sample_image() -> np.ndarray:
    """Gradients, an edge, a flat part and noise; none reaches 0 or 255 in all channels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([7 * x + 9, 9 * y + 20, 3 * x + 4 * y], axis=-1) % 251
    image[6:14, 5:17] = (60, 131, 201)
    noise = np.random.RandomState(0).randint(0, 256, (HEIGHT, 9, 3))
    image[:, -9:] = noise
    return image.astype(np.uint8)


def blend(start, image, factor):
    start, image = tf.cast(start, tf.float32), tf.cast(image, tf.float32)
    return tf.cast(tf.clip_by_value(start + factor * (image - start), 0.0, 255.0), tf.uint8)


def warp(image, matrix):
    """Map to the nearest pixels; a fourth channel marks pixels from outside, which become grey."""
    marked = tf.concat([image, tf.ones_like(image[..., :1])], axis=-1)
    out = tf.raw_ops.ImageProjectiveTransformV3(
        images=marked[None],
        transforms=tf.constant([[*matrix, 0, 0]], tf.float32),
        output_shape=tf.shape(image)[:2],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )[0]
    return tf.where(out[..., 3:] == 0, tf.constant(128, tf.uint8), out[..., :3])


def rotate(image, degrees):
    angle = tf.constant(degrees, tf.float32) * (math.pi / 180)
    cos, sin = tf.cos(angle).numpy(), tf.sin(angle).numpy()
    right, bottom = np.float32(WIDTH - 1), np.float32(HEIGHT - 1)
    x_offset = (right - (cos * right - sin * bottom)) / 2
    y_offset = (bottom - (sin * right + cos * bottom)) / 2
    return warp(image, [cos, -sin, x_offset, sin, cos, y_offset])


def auto_contrast(image):
    values = tf.cast(image, tf.float32)
    low, high = tf.reduce_min(values, axis=(0, 1)), tf.reduce_max(values, axis=(0, 1))
    scale = 255.0 / (high - low)
    return tf.cast(tf.clip_by_value(values * scale + -low * scale, 0.0, 255.0), tf.uint8)


def equalize(image):
    channels = []
    for channel in tf.unstack(tf.cast(image, tf.int32), axis=-1):
        histogram = tf.histogram_fixed_width(channel, [0, 255], nbins=256)
        filled = tf.boolean_mask(histogram, histogram != 0)
        step = (tf.reduce_sum(filled) - filled[-1]) // 255
        table = (tf.cumsum(histogram) + step // 2) // step
        table = tf.clip_by_value(tf.concat([[0], table[:-1]], axis=0), 0, 255)
        channels.append(tf.gather(table, channel))
    return tf.cast(tf.stack(channels, axis=-1), tf.uint8)


def posterize(image, level):
    shift = 8 - int(level / 10 * 4)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def solarize(image, threshold):
    return tf.where(image < threshold, image, 255 - image)


def solarize_add(image, addition):
    added = tf.clip_by_value(tf.cast(image, tf.int64) + addition, 0, 255)
    return tf.where(image < 128, tf.cast(added, tf.uint8), image)


def color(image, factor):
    return blend(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image)), image, factor)


def contrast(image, factor):
    grey = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
    histogram = tf.histogram_fixed_width(grey, [0, 255], nbins=256)
    mean = tf.clip_by_value(tf.reduce_sum(tf.cast(histogram, tf.float32)) / 256, 0.0, 255.0)
    return blend(tf.cast(tf.fill(image.shape, mean), tf.uint8), image, factor)


def sharpness(image, factor):
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32, (3, 3, 1, 1)) / 13
    kernel = tf.tile(kernel, [1, 1, 3, 1])
    values = tf.cast(image, tf.float32)[None]
    smooth = tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], padding="VALID")[0]
    smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)
    inside = tf.pad(tf.ones_like(smooth), [[1, 1], [1, 1], [0, 0]]) == 1
    smooth = tf.where(inside, tf.pad(smooth, [[1, 1], [1, 1], [0, 0]]), image)
    return blend(smooth, image, factor)


def main() -> None:
    image = tf.constant(sample_image())
    arrays = {"image": image, "AutoContrast": auto_contrast(image), "Equalize": equalize(image)}
    arrays["Invert"] = 255 - image
    for level in LEVELS:
        factor, slope, pixels = level / 10 * 1.8 + 0.1, level / 10 * 0.3, level / 10 * TRANSLATE
        arrays[f"Posterize {level}"] = posterize(image, level)
        arrays[f"Solarize {level}"] = solarize(image, int(level / 10 * 256))
        arrays[f"SolarizeAdd {level}"] = solarize_add(image, int(level / 10 * 110))
        arrays[f"Color {level}"] = color(image, factor)
        arrays[f"Contrast {level}"] = contrast(image, factor)
        arrays[f"Brightness {level}"] = blend(tf.zeros_like(image), image, factor)
        arrays[f"Sharpness {level}"] = sharpness(image, factor)
        for sign in (1, -1):
            name = f"{sign * level}"
            arrays[f"Rotate {name}"] = rotate(image, sign * (level / 10 * 30))
            arrays[f"ShearX {name}"] = warp(image, [1, sign * slope, 0, 0, 1, 0])
            arrays[f"ShearY {name}"] = warp(image, [1, 0, 0, sign * slope, 1, 0])
            arrays[f"TranslateX {name}"] = warp(image, [1, 0, sign * pixels, 0, 1, 0])
            arrays[f"TranslateY {name}"] = warp(image, [1, 0, 0, 0, 1, sign * pixels])
    file = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "augmentation.npz"
    np.savez_compressed(file, **{name: np.asarray(value) for name, value in arrays.items()})
    print(file, f"{len(arrays)} images, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
