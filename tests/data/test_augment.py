"""Augmentations against TensorFlow's images, against Pillow on photographs, and by their odds."""

import collections
import math
import pickle

import cv2
import numpy as np
import pytest
from conftest import GOLDEN, read_golden
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from effnet_jax import config as default
from effnet_jax.data import augment
from effnet_jax.errors import UserError

LEVELS = (*range(11), 17, 28)  # AutoAugment's, and RandAugment's published magnitudes.
REFERENCE = augment.Settings(100, 250, "pixel_count", "clamp", "wrap")
PILLOW = augment.Settings(40, 100, "image", "pillow", "no_op")
GREY = (128, 128, 128)


def settings(**changes):
    config = default.get_config().augment
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    size = (160, 120)
    images = load_sample_images().images
    return [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]


def affine(a, b, c, d, e, f):
    """Pillow's transform by a matrix between pixel centres; its own is between their corners."""
    c, f = c + 0.5 - (a + b) / 2, f + 0.5 - (d + e) / 2
    data = (a, b, c, d, e, f)
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST, fillcolor=GREY
    )


def table(function):
    return lambda image: image.point([function(value) for value in range(256)] * 3)


def paste(half, down, across):
    def apply(image):
        x, y = int(across * image.width), int(down * image.height)
        image.paste(GREY, (x - half, y - half, x + half, y + half))
        return image

    return apply


# By name: the arguments' operation in Pillow.
IN_PILLOW = {
    "AutoContrast": lambda: ImageOps.autocontrast,
    "Equalize": lambda: ImageOps.equalize,
    "Invert": lambda: ImageOps.invert,
    "Rotate": lambda degrees: lambda image: image.rotate(degrees, fillcolor=GREY),
    "Posterize": lambda shift: table(lambda value: value >> shift << shift),
    "Solarize": lambda threshold: lambda image: ImageOps.solarize(image, threshold),
    "Color": lambda factor: lambda image: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda factor, _: lambda image: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda factor: lambda image: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda factor: lambda image: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda slope: affine(1, slope, 0, 0, 1, 0),
    "ShearY": lambda slope: affine(1, 0, 0, slope, 1, 0),
    "TranslateX": lambda pixels: affine(1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda pixels: affine(1, 0, 0, 0, 1, pixels),
    "Cutout": paste,
    "SolarizeAdd": lambda add: table(lambda value: min(value + add, 255) if value < 128 else value),
}


def without_ties(name, difference, arguments):
    """The rows or columns, if sheared, whose source doesn't lie halfway between two pixels."""
    if name not in ("ShearX", "ShearY"):
        return difference
    axis = 0 if name == "ShearX" else 1
    shift = arguments[0] * np.arange(difference.shape[axis])
    kept = np.flatnonzero(np.abs(shift % 1 - 0.5) > 0.01)
    assert len(kept) > 0.8 * len(shift)
    return difference.take(kept, axis)


@pytest.mark.parametrize("name", augment.OPERATIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_operations_are_pillow_s(photographs, name, level):
    step = augment.make_step(name, level, PILLOW)
    rng = np.random.default_rng(level)
    for image in photographs:
        arguments = step.draw(rng)
        ours = augment.OPERATIONS[name].function(image, *arguments)
        theirs = np.asarray(IN_PILLOW[name](*arguments)(Image.fromarray(image)))
        difference = np.abs(ours.astype(int) - theirs)
        assert ours.dtype == np.uint8
        if name in ("Color", "Sharpness"):  # Pillow rounds grey and smoothed, TensorFlow truncates.
            assert difference.max() <= 1 + max(0, arguments[0] - 1)
        elif name == "AutoContrast":
            assert difference.max() <= 1
        else:
            difference = without_ties(name, difference, arguments)
            allowed = 0.002 if name == "Rotate" else 0  # Nearly halfway between two pixels.
            assert (difference.max(axis=-1) > 0).mean() <= allowed


def golden_images() -> list[str]:
    return [name for name in np.load(GOLDEN / "augmentation.npz").files if name != "image"]


@pytest.mark.parametrize("key", golden_images())
def test_operations_are_tensorflow_s(key):
    golden = np.load(GOLDEN / "augmentation.npz")
    name, _, level = key.partition(" ")
    level = int(level or 0)
    # Translations of the golden images are 12.5 pixels at level 10.
    step = augment.make_step(name, abs(level), REFERENCE._replace(translate=12.5))
    arguments, operation = step.arguments, augment.OPERATIONS[name]
    if operation.draw:
        arguments = (math.copysign(arguments[0], level),)
    ours = operation.function(golden["image"], *arguments)
    if name == "Sharpness":  # Its sums of thirteenths come out a float above or below a whole one.
        difference = np.abs(ours.astype(int) - golden[key])
        assert difference.max() <= max(1, arguments[0] - 1)
        assert (difference > 0).mean() < 0.1
    else:
        np.testing.assert_array_equal(ours, golden[key])


def test_colours_are_tensorflow_s_where_floats_are_nearly_whole():
    # tf.image.rgb_to_grayscale of TensorFlow 2.21: six of the 175 colours of all 16.8 million for
    # which one multiplication by the weights * 255.5 / 255 is off by 1.
    colours = [[0, 122, 186], [83, 202, 108], [146, 208, 52], [198, 75, 154], [242, 119, 136]]
    image = np.array([colours], np.uint8)
    assert augment.color(image, 0.0)[0, :, 0].tolist() == [93, 156, 172, 121, 158]


@pytest.mark.parametrize("level", [3, 6, 20 / 3, 28])
def test_blending_truncates_in_float32(level):
    # `blend` in autoaugment.py: start + factor * (image - start), all in float32. 1.18 * 50 is 59,
    # and in float32 a little less, which from 0 is truncated to 58.
    factor = level / 10 * 1.8 + 0.1
    start, image = np.mgrid[:256, :256].astype(np.uint8)
    floats = start.astype(np.float32)
    floats = floats + np.float32(factor) * (image.astype(np.float32) - floats)
    expected = floats.clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(augment._blend(start, image, factor), expected)
    if level == 6:
        assert (expected[0, 50], expected[128, 178]) == (58, 187)


@pytest.mark.parametrize(("degrees", "place"), [(24, (68, 160)), (-24, (160, 68))])
def test_rotation_s_ties_are_tensorflow_s(degrees, place):
    # ImageProjectiveTransformV3 of TensorFlow 2.21, matrix in float32: the one pixel of 224
    # x 224 whose source float64 rounds to the other side.
    rows, columns = np.mgrid[:224, :224]
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    expected = [91, 174, 0] if degrees > 0 else [174, 91, 0]
    assert augment.rotate(image, degrees)[place].tolist() == expected


def test_the_golden_images_cover_all_but_the_random_operation():
    assert {key.partition(" ")[0] for key in golden_images()} == {*augment.OPERATIONS} - {"Cutout"}


def magnitude(name: str, arguments: tuple) -> str:
    """Arguments as the golden table writes them."""
    if not arguments:
        return "none"
    number = f"{arguments[0]:.6g}"
    return {
        "Rotate": f"±{number} deg",
        "ShearX": f"±{number}",
        "ShearY": f"±{number}",
        "TranslateY": f"±{number} px",
        "Color": f"factor {number}",
        "Posterize": None,  # Written as bits, which "clamp" doesn't keep.
        "Solarize": f"threshold {number}"
        if number != "0"
        else None,  # Of 256, that "wrap" makes 0.
        "SolarizeAdd": f"add {number}",
    }[name]


def test_the_policy_is_the_published_table():
    policy = augment.build_policy(settings(policy="autoaugment"))
    rows = collections.defaultdict(list)
    for row in read_golden("autoaugment_v0.csv"):
        rows[int(row["sub_policy"])].append(row)
    assert len(policy.sub_policies) == len(augment.AUTOAUGMENT_V0) == len(rows) == 25
    for number, golden in rows.items():
        names = augment.AUTOAUGMENT_V0[number]
        assert [(n, p, v) for n, p, v in names] == [
            (row["op"], float(row["probability"]), int(row["level"])) for row in golden
        ]
        steps = zip(policy.sub_policies[number], names, golden, strict=True)
        for (step, probability), (name, _, _), row in steps:
            assert probability == float(row["probability"])
            assert magnitude(name, step.arguments) in (None, row["magnitude"])


def test_each_policy_has_its_own_distances():
    auto = augment.build_policy(settings(policy="autoaugment"))
    assert auto.sub_policies[15][1][0].arguments == (225.0,)
    rand = augment.build_policy(settings(policy="randaugment", randaugment_magnitude=17.0))
    steps = dict(zip(augment.OPERATIONS, rand.steps, strict=True))
    assert steps["TranslateX"].arguments == (170.0,)
    assert steps["Cutout"].arguments == (68,)
    assert len(rand.steps) == 16


def test_contrast_s_mean(photographs):
    image = cv2.resize(photographs[0], (224, 224))
    flat = np.full((224, 224, 3), 50, np.uint8)
    # 224 * 224 / 256 = 196, and 0.28 of the way from there to 50; the image's own mean is 50.
    assert (augment.contrast(flat, 0.28) == 155).all()
    assert (augment.contrast(flat, 0.28, "image") == 50).all()
    assert (augment.contrast(np.zeros((300, 300, 3), np.uint8), 0.1) == 229).all()
    assert augment.contrast(image, 0.1).mean() > augment.contrast(image, 0.1, "image").mean() + 20


@pytest.mark.parametrize(
    ("level", "clamped", "pillow"),
    # Levels 0 and 2 keep 0 bits, a shift by 8; 28 keeps 11, a shift by -3.
    [(0, 7, 8), (2, 7, 8), (6, 6, 6), (10, 4, 4), (17, 2, 2), (20, 0, 0), (28, 7, 0)],
)
def test_posterize_s_shift(level, clamped, pillow):
    assert augment.make_step("Posterize", level, REFERENCE).arguments == (clamped,)
    assert augment.make_step("Posterize", level, PILLOW).arguments == (pillow,)
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    assert set(np.unique(augment.posterize(image, clamped))) == {*range(0, 256, 2**clamped)}
    assert (augment.posterize(image, 8) == 0).all()


@pytest.mark.parametrize(("level", "no_op", "wrap"), [(3, 76, 76), (10, 256, 0), (17, 435, 179)])
def test_solarize_s_threshold(level, no_op, wrap, photographs):
    image = photographs[0]
    for choice, threshold in (("no_op", no_op), ("wrap", wrap)):
        quirks = REFERENCE._replace(solarize_threshold=choice)
        step = augment.make_step("Solarize", level, quirks)
        assert step.arguments == (threshold,)
        expected = np.where(image.astype(int) < threshold, image, 255 - image)
        np.testing.assert_array_equal(step(image, None), expected)


class Recorder:
    """Stands for a step and counts how often it is taken."""

    def __init__(self):
        self.count = 0

    def __call__(self, image, rng):
        self.count += 1
        return image


def test_a_magnitude_between_whole_numbers():
    # By hand from level_to_arg in google/automl efficientnetv2/autoaugment.py, which cuts off.
    at = lambda name: augment.make_step(name, 20 / 3, PILLOW).arguments  # noqa: E731
    assert [at(name) for name in ("Posterize", "Solarize", "SolarizeAdd", "Cutout")] == [
        (8 - 2,),  # int(2.67)
        (170,),  # int(170.67)
        (73,),  # int(73.33)
        (26,),  # int(26.67)
    ]
    floats = {"Rotate": 20, "Color": 1.3, "ShearX": 0.2, "TranslateY": 200 / 3}
    for name, expected in floats.items():
        assert at(name) == pytest.approx((expected,)), name


def test_sub_policies_and_operations_come_as_often_as_they_should():
    probabilities = [tuple(p for _, p, _ in pair) for pair in augment.AUTOAUGMENT_V0]
    recorders = [[(Recorder(), p) for p in pair] for pair in probabilities]
    policy = augment.AutoAugment(tuple(map(tuple, recorders)))
    rng, images = np.random.default_rng(0), 20000
    for _ in range(images):
        policy(None, rng)
    for pair in recorders:
        for recorder, probability in pair:
            mean = images / len(recorders) * probability
            assert abs(recorder.count - mean) <= 4 * math.sqrt(mean)


@pytest.mark.parametrize(("always", "expected"), [(True, 3.0), (False, 1.5)])
def test_randaugment_draws_with_replacement(always, expected):
    recorders = tuple(Recorder() for _ in range(16))
    policy = augment.RandAugment(recorders, layers=3, always=always)
    rng, images = np.random.default_rng(0), 6000
    for _ in range(images):
        policy(None, rng)
    counts = [recorder.count for recorder in recorders]
    assert sum(counts) / images == pytest.approx(expected, rel=0.03)
    assert min(counts) > 0.8 * np.mean(counts)
    assert augment.build_policy(settings(policy="randaugment")).always
    used = settings(policy="randaugment", randaugment_probability="used")
    assert not augment.build_policy(used).always


def test_signs_and_places_are_even():
    rng = np.random.default_rng(0)
    signs = [augment.make_step("Rotate", 5, REFERENCE).draw(rng)[0] for _ in range(2000)]
    assert set(signs) == {15.0, -15.0}
    assert abs(np.mean(signs)) < 1.5
    white = np.full((20, 30, 3), 255, np.uint8)
    step = augment.Step("Cutout", (1,))
    hits = sum(step(white, rng) == 128 for _ in range(3000))[..., 0]
    # Squares of side 2, also about the pixels of the border: but in the last row and column, which
    # only one centre in two reaches, every pixel is covered by 4 centres of 600.
    assert np.abs(hits[:-1, :-1] - 20).max() < 20
    assert np.mean(hits[:-1, :-1]) == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment"])
def test_same_generator_same_image_and_the_input_stays(policy, photographs):
    config = settings(policy=policy, randaugment_layers=3, randaugment_magnitude=17.0)
    first, second = augment.build_policy(config), augment.build_policy(config)
    second = pickle.loads(pickle.dumps(second))
    image = photographs[1].copy()
    image.setflags(write=False)
    changed = 0
    for seed in range(150):
        ours, theirs = (make(image, np.random.default_rng(seed)) for make in (first, second))
        np.testing.assert_array_equal(ours, theirs)
        assert ours.shape == image.shape
        assert ours.dtype == np.uint8
        changed += (ours != image).any()
    assert changed > 100
    np.testing.assert_array_equal(image, photographs[1])


def test_views_are_taken_as_images_are(photographs):
    mirrored = photographs[0][:, ::-1]
    for name in augment.OPERATIONS:
        step = augment.make_step(name, 9, REFERENCE)
        views = step(mirrored, np.random.default_rng(0))
        copies = step(np.ascontiguousarray(mirrored), np.random.default_rng(0))
        np.testing.assert_array_equal(views, copies)


def test_flat_images_stay():
    flat = np.full((17, 19, 3), (3, 255, 0), np.uint8)
    for operation in (augment.auto_contrast, augment.equalize):
        np.testing.assert_array_equal(operation(flat), flat)


def test_no_policy_is_none():
    assert augment.build_policy(settings()) is None


def test_erased_rectangles():
    config = settings(erase_probability=1.0)
    image = np.zeros((120, 160, 3), np.uint8)
    image.setflags(write=False)
    rng = np.random.default_rng(0)
    areas, aspects = [], []
    for _ in range(1500):
        erased = augment.erase(image, config, (0.485, 0.456, 0.406), rng)
        rows, columns = (np.flatnonzero(erased.any(axis=(axis, 2))) for axis in (1, 0))
        height, width = len(rows), len(columns)
        box = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == (124, 116, 104)).all()
        assert box.size == 3 * height * width == np.count_nonzero(erased)
        areas.append(height * width / (120 * 160))
        aspects.append(height / width)
    assert 0.018 < min(areas) < 0.03
    assert 0.3 < max(areas) < 0.34
    assert 0.28 < min(aspects) < 0.33
    assert 3 < max(aspects) < 3.5
    assert np.median(aspects) == pytest.approx(1, rel=0.1)  # Log-uniform: as often tall as wide.


def test_erasing_with_noise_and_by_probability():
    image = np.full((60, 60, 3), 7, np.uint8)
    rng = np.random.default_rng(0)
    mean = (0.5, 0.5, 0.5)
    noise = augment.erase(image, settings(erase_probability=1.0, erase_fill="noise"), mean, rng)
    assert len(np.unique(noise)) > 50
    half = settings(erase_probability=0.5)
    changed = [(augment.erase(image, half, mean, rng) != 7).any() for _ in range(1000)]
    assert np.mean(changed) == pytest.approx(0.5, abs=0.05)
    assert augment.erase(image, settings(), mean, rng) is image
    # No attempt fits: the image stays whole.
    narrow = np.zeros((2, 300, 3), np.uint8)
    tall = settings(erase_probability=1.0, erase_area=(0.5, 0.5), erase_aspect=(3.0, 3.0))
    assert augment.erase(narrow, tall, mean, rng) is narrow


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy", "autoaugmnt", "did you mean: autoaugment"),
        ("contrast_mean", "pixels", "unknown config.augment.contrast_mean"),
        ("posterize_shift", "wrap", "unknown config.augment.posterize_shift"),
        ("solarize_threshold", "clamp", "unknown config.augment.solarize_threshold"),
        ("randaugment_probability", "always", "unknown config.augment.randaugment_probability"),
        ("erase_fill", "black", "unknown config.augment.erase_fill"),
        ("erase_area", (0.5, 1.5), "at most 1"),
        ("erase_area", (0.5, 0.2), "must be a range above 0"),
        ("erase_aspect", (0.0, 3.0), "must be a range above 0"),
        ("erase_aspect", (1.0, 2.0, 3.0), "must be two numbers"),
    ],
)
def test_values_that_mean_nothing_are_refused(key, value, message):
    config = default.get_config()
    with config.ignore_type():
        config.augment[key] = value
    with pytest.raises(UserError, match=message):
        default.validate(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("randaugment_layers", 17),
        ("randaugment_magnitude", 31.0),
        ("erase_probability", 1.1),
        ("mixup_alpha", -0.1),
        ("cutmix_alpha", -1.0),
    ],
)
def test_numbers_out_of_range_are_refused(key, value):
    config = default.get_config()
    config.augment[key] = value
    with pytest.raises(UserError, match=f"config.augment.{key} must be at least 0"):
        default.validate(config)


def test_cutout_noise_is_a_square_around_any_pixel():
    """As the reference's: pad_size = size // 4 around a middle that is uniform over the image."""
    image, rng, counts = np.zeros((32, 32, 3), np.uint8), np.random.default_rng(0), []
    hits = np.zeros((32, 32))
    for _ in range(2000):
        filled = augment.cutout_noise(image, 0.5, rng).any(-1)
        rows, columns = (np.flatnonzero(filled.any(axis)) for axis in (1, 0))
        assert filled.sum() == len(rows) * len(columns)
        counts.append((len(rows), len(columns)))
        hits += filled
    assert not image.any()
    assert np.min(counts) == 8 and np.max(counts) == 16
    # A pixel in the middle is hit by 16 of 32 middles along each axis, one at the edge by 8 or 9.
    np.testing.assert_allclose(hits[16, 16] / 2000, 0.25, atol=0.04)
    np.testing.assert_allclose(hits[0, 0] / 2000, (9 / 32) ** 2, atol=0.03)
    noise = augment.cutout_noise(np.zeros((64, 64, 3), np.uint8), 0.5, rng)
    assert noise[noise > 0].min() >= 128 and noise.std() > 0


def test_both_cutouts_fill_the_same_square():
    image = np.zeros((32, 48, 3), np.uint8)
    for seed in range(50):
        noise = augment.cutout_noise(image, 0.5, np.random.default_rng(seed))
        row, column = map(np.random.default_rng(seed).integers, image.shape[:2])
        grey = augment.cutout_grey(image, 8, (row + 0.5) / 32, (column + 0.5) / 48)
        np.testing.assert_array_equal(grey, np.where(noise > 0, 128, 0))
