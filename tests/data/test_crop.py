"""Crops against the reference's rules."""

import numpy as np
import pytest
from conftest import read_golden

from configs import imagenet
from effnet_jax.data import crop, pipeline


@pytest.mark.parametrize(
    ("height", "width", "size", "padding", "box"),
    [
        # side = int(size / (size + 32) * shorter), offset = (length - side + 1) // 2, by hand.
        (256, 256, 224, 32, (16, 16, 224, 224)),
        (375, 500, 224, 32, (24, 86, 328, 328)),
        (500, 333, 600, 32, (92, 9, 316, 316)),
        (8, 8, 24, 0, (0, 0, 8, 8)),
    ],
)
def test_central_box_is_the_reference_s(height, width, size, padding, box):
    assert crop.central_box(height, width, size / (size + padding)) == box


def test_random_boxes_stay_within_their_ranges():
    rng = np.random.default_rng(0)
    height, width = 300, 500
    areas, aspects, tops = [], [], []
    for _ in range(4000):
        box = crop.random_box(height, width, (0.2, 0.9), (3 / 4, 4 / 3), rng)
        top, left, h, w = box
        assert top >= 0 and left >= 0 and top + h <= height and left + w <= width
        areas.append(h * w / (height * width))
        aspects.append(w / h)
        tops.append(top / max(1, height - h))
    assert min(areas) >= 0.2
    assert max(areas) <= 0.9
    assert min(areas) < 0.22
    assert 0.74 < min(aspects) < 0.77
    assert 1.31 < max(aspects) < 1.35
    assert np.mean(tops) == pytest.approx(0.5, abs=0.05)


def test_a_shape_that_no_crop_fits_gives_none():
    rng = np.random.default_rng(0)
    assert crop.random_box(1000, 3, (0.5, 1.0), (3 / 4, 4 / 3), rng) is None


def test_a_crop_covers_at_least_a_tenth():
    rng = np.random.default_rng(0)
    boxes = [crop.random_box(100, 100, (0.01, 1.0), (1, 1), rng) for _ in range(500)]
    assert min(h * w for _, _, h, w in filter(None, boxes)) >= 1000


@pytest.mark.parametrize("row", read_golden("crops.csv"), ids=lambda row: str([*row.values()][:3]))
def test_random_boxes_are_tensorflow_s(row):
    config = imagenet.get_config({"v1": "b0", "v2": "v2-s"}[row["recipe"]]).preprocess
    height, width, rng = int(row["height"]), int(row["width"]), np.random.default_rng(0)
    limits = config.crop_min_covered, config.crop_attempts
    boxes = [
        crop.random_box(height, width, config.crop_area, config.crop_aspect, rng, *limits)
        for _ in range(5000)
    ]
    _, _, heights, widths = np.array([box or (0, 0, height, width) for box in boxes]).T
    areas = heights * widths / (height * width)
    # Within three standard deviations of the mean of 5,000 crops.
    share = float(row["share_below_tenth"])
    assert (areas < 0.1).mean() == pytest.approx(share, abs=3 * (share * (1 - share) / 5000) ** 0.5)
    assert areas.mean() == pytest.approx(float(row["area_mean"]), abs=3 * areas.std() / 5000**0.5)
    found = np.quantile(areas, [0.1, 0.5, 0.9])
    expected = [float(row[f"area_{share}"]) for share in (10, 50, 90)]
    np.testing.assert_allclose(found, expected, atol=0.025)
    aspects = widths / heights
    assert aspects.mean() == pytest.approx(float(row["aspect_mean"]), abs=0.01)


def test_the_last_row_is_reached_by_crops_of_full_height_alone():
    # TensorFlow's kernel draws the offset by Uniform(height - crop_height), below its limit.
    rng = np.random.default_rng(0)
    boxes = [crop.random_box(12, 16, (0.2, 1), (3 / 4, 4 / 3), rng) for _ in range(2000)]
    ends = {(h == 12, top + h) for top, _, h, _ in boxes}
    assert (True, 12) in ends and (False, 11) in ends and (False, 12) not in ends


def test_a_crop_of_the_whole_image_is_evaluation_s():
    # As in the reference's _decode_and_random_crop; V2 keeps the whole image.
    for model, box in (("b0", (2, 2, 28, 28)), ("v2-s", (0, 0, 32, 32))):
        config = imagenet.get_config(model)
        config.preprocess.crop_area = (0.99, 1.0)
        config.preprocess.crop_aspect = (1.0, 1.0)
        config.data.update({"source": "digits", "train_split": "train"})
        images = pipeline.TrainImages([None] * 8, config)
        assert images.box(224, np.random.default_rng(0), 32, 32) == box


def test_a_box_of_an_image():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(crop.crop(image, (1, 2, 2, 3)), image[1:3, 2:5])
