"""AutoAugment v0, RandAugment, cutout and random erasing on the CPU, one uint8 image at a time.

The operations match tensorflow/tpu models/official/efficientnet/autoaugment.py to the pixel, except
sharpness: where a smoothed value is a whole number, TensorFlow's sum of floats may be slightly less
and is then truncated to one less. The reference is meant to reproduce Pillow; where it differs,
`config.augment` has a key to choose between the two.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]

FILL = 128  # Grey level of cutout, and of pixels that a warp takes from outside the image.
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# cv2 rounds to the nearest level and the reference truncates; adding this makes cv2 truncate too.
# It is slightly above -0.5 because the float of a whole number may be slightly too small.
TRUNCATE = -0.499
# The contribution of each level of red, green and blue to grey in rgb_to_grayscale, which scales
# 0..255 to 0..1 and back. The factor back is 255.5, so that 1.0 is truncated to 255.
LEVELS = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
GREY_SHARES = [LEVELS * np.float32(weight) for weight in (0.2989, 0.587, 0.114)]
# The kernel of Pillow's ImageFilter.SMOOTH.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """start + factor * (image - start); a factor above 1 extrapolates."""
    weigh = _weigh if _is_exact(factor) else _weigh_in_floats
    return weigh(start, image, factor)


def _weigh(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, start, 1 - factor, TRUNCATE)


def _weigh_in_floats(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the reference's arithmetic, which takes five times as long as cv2's."""
    difference = np.subtract(image, start, dtype=np.float32)
    return np.clip(start + np.float32(factor) * difference, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _is_exact(factor: float) -> bool:
    """Whether cv2 blends all pairs of levels as the reference does. For 1.18 and 1.3 it doesn't."""
    pairs = np.mgrid[:256, :256].astype(np.uint8)
    return np.array_equal(_weigh(*pairs, factor), _weigh_in_floats(*pairs, factor))


def _by_channel(table: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """An operation that maps each channel through the uint8 [256] that `table` computes from it."""
    # At 224 px this takes 50 us, and cv2.LUT with a table of three channels 90 us.
    return lambda image: cv2.merge([cv2.LUT(plane, table(plane)) for plane in cv2.split(image)])


@_by_channel
def auto_contrast(plane: np.ndarray) -> np.ndarray:
    """Stretches the range of each channel to 0..255."""
    low, high = (np.float32(extreme) for extreme in cv2.minMaxLoc(plane)[:2])
    values = np.arange(256, dtype=np.float32)
    if low == high:
        return values.astype(np.uint8)
    scale = np.float32(255) / (high - low)
    return np.clip(values * scale + -low * scale, 0, 255).astype(np.uint8)


@_by_channel
def equalize(plane: np.ndarray) -> np.ndarray:
    """Flattens each channel's histogram."""
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    step = (plane.size - int(counts[counts.nonzero()[0][-1]])) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(counts) - counts
    return np.minimum((below + step // 2) // step, 255).astype(np.uint8)


def posterize(image: np.ndarray, shift: int) -> np.ndarray:
    """Clears the `shift` lowest bits."""
    return image & np.uint8(0xFF << shift & 0xFF)


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values of at least `threshold`; none if it is above 255."""
    return image ^ -(image >= threshold).view(np.uint8)


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Adds `addition` to values below 128, and clips the sums to 255."""
    return cv2.add(image, (image < 128).view(np.uint8) * np.uint8(min(addition, 255)))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns grey at factor 0, the image at 1, and more saturated colours above 1."""
    grey, green, blue = map(cv2.LUT, cv2.split(image), GREY_SHARES)
    grey = ((grey + green + blue) * np.float32(255.5)).astype(np.uint8)
    return _blend(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), image, factor)


def brightness(image: np.ndarray, factor: float, start: int = 0) -> np.ndarray:
    """Returns the level `start` at factor 0, the image at 1, and a brighter image above 1."""
    start = np.float32(start)
    table = start + np.float32(factor) * (np.arange(256, dtype=np.float32) - start)
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def contrast(image: np.ndarray, factor: float, mean: str = "pixel_count") -> np.ndarray:
    """Returns a uniform grey at factor 0, the image at 1, and more contrast above 1.

    With `mean="image"` the grey is the image's mean, as in Pillow. With "pixel_count" it is the
    number of pixels / 256, at most 255: the reference sums a histogram and divides by its 256 bins.
    """
    if mean == "image":
        grey = round(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    else:
        grey = min(image.shape[0] * image.shape[1] // 256, 255)
    return brightness(image, factor, start=grey)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns a smoothed image at factor 0, the image at 1, and a sharper one above 1.

    The border of one pixel is unchanged.
    """
    result = _blend(cv2.filter2D(image, -1, SMOOTH, delta=TRUNCATE), image, factor)
    result[[0, -1]] = image[[0, -1]]
    result[:, [0, -1]] = image[:, [0, -1]]
    return result


@functools.lru_cache(maxsize=32)
def _sampling_map(matrix: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """Coordinates x, y of the source of each output pixel, int16 [H, W, 2].

    They are cached, because a policy has few matrices.
    """
    a, b, c, d, e, f = np.float32(matrix)
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    # The sum is in float32, as in the reference; adding 0.5 is exact only in float64.
    source = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1).astype(np.float64)
    return np.copysign(np.floor(np.abs(source) + 0.5), source).astype(np.int16)


def _warp(image: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Sets output pixel (x, y) to the image's pixel nearest to (a x + b y + c, d x + e y + f)."""
    if matrix == IDENTITY:
        return image
    source = _sampling_map(matrix, *image.shape[:2])
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (FILL,) * 3}
    return cv2.remap(image, source, None, cv2.INTER_NEAREST, **border)


def _with_entry(index: int) -> Callable[[np.ndarray, float], np.ndarray]:
    """A warp by the identity with one entry replaced: 1 and 3 shear, 2 and 5 translate."""
    return lambda image, value: _warp(image, (*IDENTITY[:index], value, *IDENTITY[index + 1 :]))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates about the centre, counterclockwise if positive; in float32, as in the reference."""
    bottom, right = np.float32(image.shape[:2]) - 1
    radians = np.float32(degrees) * np.float32(math.pi / 180)
    cos, sin = np.cos(radians), np.sin(radians)
    x_offset = (right - (cos * right - sin * bottom)) / 2
    y_offset = (bottom - (sin * right + cos * bottom)) / 2
    return _warp(image, (cos, -sin, x_offset, sin, cos, y_offset))


def _square(image: np.ndarray, row: int, column: int, half: int) -> np.ndarray:
    """A view of the square of side 2 * half around a pixel, cut off at the image's edges."""
    return image[max(0, row - half) : row + half, max(0, column - half) : column + half]


def cutout_grey(image: np.ndarray, half: int, down: float, across: float) -> np.ndarray:
    """Fills a square of side 2 * half with grey: the operation Cutout of the policies.

    Its centre is at the fractions `down` and `across` of the height and the width.
    """
    result = image.copy()
    _square(result, int(down * len(image)), int(across * image.shape[1]), half)[:] = FILL
    return result


def cutout_noise(image: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """Fills a square with noise from 128 to 255: `config.augment.cutout`, apart from any policy.

    Its side is the fraction `side` of the image's height, and its centre is a random pixel.

    Source: google/automl efficientnetv2/preprocessing.py, preprocess_for_finetune.
    """
    result = image.copy()
    half, row, column = int(side * len(image)) // 2, *map(rng.integers, image.shape[:2])
    square = _square(result, row, column, half)
    square[:] = rng.integers(128, 256, square.shape, np.uint8)
    return result


def _signed(amount: float, rng: np.random.Generator) -> tuple[float]:
    return (amount if rng.random() < 0.5 else -amount,)


class Settings(NamedTuple):
    """The values that, together with the level, determine the arguments of operations."""

    cutout: int  # Half the square's side at level 10, in pixels.
    translate: int  # Shift at level 10, in pixels.
    contrast_mean: str  # This and the fields below are keys of `config.augment`.
    posterize_shift: str
    solarize_threshold: str


def _posterize_arguments(level: float, settings: Settings) -> tuple[int]:
    shift = 8 - int(level * 4)  # In TensorFlow it is a uint8, so that -3 is 253, and at most 7.
    return (max(0, shift) if settings.posterize_shift == "pillow" else min(shift % 256, 7),)


def _solarize_arguments(level: float, settings: Settings) -> tuple[int]:
    threshold = int(level * 256)  # TensorFlow wraps it to uint8: 256 becomes 0.
    return (threshold % 256 if settings.solarize_threshold == "wrap" else threshold,)


def _factor(level: float, _: Settings) -> tuple[float]:
    return (level * 1.8 + 0.1,)


class Operation(NamedTuple):
    """A function of an image, and how its arguments follow from level / 10 and random draws."""

    function: Callable[..., np.ndarray]
    arguments: Callable[[float, Settings], tuple] = lambda level, settings: ()
    draw: Callable[..., tuple] | None = None  # (*arguments, rng) -> arguments for one image.


OPERATIONS = {
    "AutoContrast": Operation(auto_contrast),
    "Equalize": Operation(equalize),
    "Invert": Operation(cv2.bitwise_not),
    "Rotate": Operation(rotate, lambda level, _: (level * 30,), _signed),
    "Posterize": Operation(posterize, _posterize_arguments),
    "Solarize": Operation(solarize, _solarize_arguments),
    "Color": Operation(color, _factor),
    "Contrast": Operation(contrast, lambda level, s: (*_factor(level, s), s.contrast_mean)),
    "Brightness": Operation(brightness, _factor),
    "Sharpness": Operation(sharpness, _factor),
    "ShearX": Operation(_with_entry(1), lambda level, _: (level * 0.3,), _signed),
    "ShearY": Operation(_with_entry(3), lambda level, _: (level * 0.3,), _signed),
    "TranslateX": Operation(_with_entry(2), lambda level, s: (level * s.translate,), _signed),
    "TranslateY": Operation(_with_entry(5), lambda level, s: (level * s.translate,), _signed),
    "Cutout": Operation(
        cutout_grey,
        lambda level, s: (int(level * s.cutout),),
        lambda half, rng: (half, rng.random(), rng.random()),
    ),
    "SolarizeAdd": Operation(solarize_add, lambda level, _: (int(level * 110),)),
}

# AutoAugment v0 (1805.09501), found on ImageNet. Each image draws one of these lines; its two
# operations (name, probability, level) are applied in order. TranslateY at level 9 shifts by 225
# pixels, which leaves nothing of an image of 224 pixels (3.2 % of all images), as in the reference.
AUTOAUGMENT_V0 = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


class Step(NamedTuple):
    """An operation and its arguments at one level. It can be pickled."""

    name: str
    arguments: tuple

    def draw(self, rng: np.random.Generator) -> tuple:
        """Returns the arguments for one image."""
        draw = OPERATIONS[self.name].draw
        return draw(*self.arguments, rng) if draw else self.arguments

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return OPERATIONS[self.name].function(image, *self.draw(rng))


def make_step(name: str, level: float, settings: Settings) -> Step:
    """The operation `name` at a level from 0 to 10, or above 10 in RandAugment."""
    return Step(name, OPERATIONS[name].arguments(level / 10, settings))


class AutoAugment(NamedTuple):
    """Applies one random sub-policy: steps in order, each with its probability."""

    sub_policies: tuple[tuple[tuple[Step, float], ...], ...]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for step, probability in self.sub_policies[int(rng.random() * len(self.sub_policies))]:
            if rng.random() < probability:
                image = step(image, rng)
        return image


class RandAugment(NamedTuple):
    """Applies `layers` random steps, drawn with replacement."""

    steps: tuple[Step, ...]
    layers: int
    always: bool  # False: apply each step with a probability drawn from 0.2 to 0.8.

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for _ in range(self.layers):
            step = self.steps[int(rng.random() * len(self.steps))]
            if self.always or rng.random() < rng.uniform(0.2, 0.8):
                image = step(image, rng)
        return image


def build_policy(config: ConfigDict) -> Policy | None:
    """The policy of `config.augment`, or None for "none". It can be pickled.

    It takes an image, uint8 [H, W, 3], and a random generator, and never writes to the image.
    """
    if config.policy == "none":
        return None
    quirks = (config.contrast_mean, config.posterize_shift, config.solarize_threshold)
    if config.policy == "autoaugment":
        settings = Settings(100, 250, *quirks)
        pairs = [
            tuple((make_step(name, level, settings), p) for name, p, level in sub_policy)
            for sub_policy in AUTOAUGMENT_V0
        ]
        return AutoAugment(tuple(pairs))
    settings = Settings(40, 100, *quirks)
    steps = tuple(make_step(name, config.randaugment_magnitude, settings) for name in OPERATIONS)
    always = config.randaugment_probability == "ignored"
    return RandAugment(steps, config.randaugment_layers, always)


def erase(
    image: np.ndarray, config: ConfigDict, mean: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Random erasing (1708.04896): fills a rectangle with the probability `erase_probability`.

    Returns a copy; or the image itself if nothing is erased, by chance or because none of ten
    random rectangles fits. `mean` is RGB in 0..1.
    """
    if rng.random() >= config.erase_probability:
        return image
    height, width = image.shape[:2]
    for _ in range(10):
        area = rng.uniform(*config.erase_area) * height * width
        aspect = math.exp(rng.uniform(*map(math.log, config.erase_aspect)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            fill = np.round(255 * np.array(mean)).astype(np.uint8)
            if config.erase_fill == "noise":
                fill = rng.integers(0, 256, (h, w, 3), np.uint8)
            result = image.copy()
            result[top : top + h, left : left + w] = fill
            return result
    return image
