"""Crops against the reference's rules."""

import numpy as np
import pytest

from effnet_jax.data import crop


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


def test_a_box_of_an_image():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(crop.crop(image, (1, 2, 2, 3)), image[1:3, 2:5])
