"""Cluttered digits: reproducible, with one whole digit per image, and splits that share nothing."""

import numpy as np
import pytest

from configs import digits as digits_config
from effnet_jax.data import digits as module
from effnet_jax.data import sources
from effnet_jax.data.digits import pixels_and_labels
from effnet_jax.errors import UserError


def test_an_image_follows_from_its_index_and_split():
    digits, labels = pixels_and_labels(test=False)
    digits = digits.astype(np.float32)
    image, label = module.draw(3, digits, labels, seed=0)
    again, _ = module.draw(3, digits, labels, seed=0)
    np.testing.assert_array_equal(image, again)
    assert image.shape == (96, 96) and image.dtype == np.uint8 and 0 <= label < 10
    for index, seed in ((4, 0), (3, 1)):
        assert (module.draw(index, digits, labels, seed)[0] != image).any()


def test_the_digit_is_whole_and_brighter_than_the_parts(monkeypatch):
    monkeypatch.setattr(module, "NOISE", 0.0)
    # The digit is a frame of 28 bright pixels, which no part can show whole.
    frame = np.full((1, 8, 8), 255, np.float32)
    frame[0, 1:7, 1:7] = 0
    sides = []
    for index in range(40):
        image, label = module.draw(index, frame, np.array([7]), seed=0)
        assert label == 7
        rows, columns = np.nonzero(image > 255 * module.PART_CONTRAST[1] * 1.35)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(int(height) - int(width)) <= 2
        sides.append(max(height, width))
    low, high = module.SIDES
    assert low - 4 <= min(sides) and max(sides) <= high
    assert max(sides) > 2 * min(sides) - 8


def test_splits_are_made_of_different_digits():
    train, test = (pixels_and_labels(test) for test in (False, True))
    assert (len(train[0]), len(test[0])) == (1437, 360)
    config = digits_config.get_config().data
    config.name = "cluttered_digits"
    sizes = [len(sources.open_source(config, split)) for split in ("train", "test")]
    assert sizes == [8000, 2000]
    source = sources.open_source(config.copy_and_resolve_references(), "train[:30]")
    # These images are drawn only from the digits of the split.
    drawn = {
        module.draw(index, train[0].astype(np.float32), train[1], 0)[0].tobytes()
        for index in range(30)
    }
    images = [source[index]["image"] for index in range(len(source))]
    assert {image[..., 0].tobytes() for image in images} == drawn
    assert all((image == image[..., :1]).all() for image in images)  # Grey.
    assert source.classes == tuple(map(str, range(10)))


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(UserError, match=r"unknown config\.data\.name 'clutered_digits'"):
        sources.digits_source("clutered_digits", None, "train")


def test_pairs_are_read_from_left_to_right_in_100_classes(monkeypatch):
    monkeypatch.setattr(module, "NOISE", 0.0)
    digits = np.zeros((2, 8, 8), np.float32)
    digits[0], digits[1, :, 3:5] = 255, 255  # A square, and a bar.
    for index in range(10):
        image, label = module.draw_pair(index, digits, np.array([4, 1]), seed=0)
        # No digit crosses the middle: each half has one digit of 24 to 44 rows.
        for half, name in zip(np.split(image, 2, 1), divmod(label, 10), strict=True):
            rows, columns = np.nonzero(half > 255 * module.PART_CONTRAST[1] * 1.35)
            assert 23 <= np.ptp(rows) + 1 <= 45
            assert (np.ptp(columns) > 16) == (name == 4)
    config = digits_config.get_config().data
    config.name = "digit_pairs"
    source = sources.open_source(config, "test[:50]")
    assert len(source) == 50 and source.classes[7] == "07" and len(source.classes) == 100
    assert source[0]["image"].shape == (96, 96, 3)


def test_digits_that_are_trained_on_are_counted():
    config = digits_config.get_config().data
    config.update(train_split="train[100:]", eval_split="train[90:110]+test[:5]")
    found = sources.open_source(config, config.eval_split)
    assert (len(found), sources.count_trained_on(found, config, config)) == (25, 10)
    other = digits_config.get_config().data
    other.name = "cluttered_digits"  # A data set with other images.
    assert sources.count_trained_on(found, config, other) == 0
