"""Mixup and cutmix by hand, and the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax import config as default
from effnet_jax.errors import UserError
from effnet_jax.training.mixing import box_weights, is_mixing, mix


def config_for(mixup: float = 0.0, cutmix: float = 0.0):
    config = default.get_config().augment
    config.mixup_alpha, config.cutmix_alpha = mixup, cutmix
    return config


def batch(count: int, size: int = 8):
    """Images whose pixels all hold their row's number, one class for each."""
    images = jnp.broadcast_to(
        jnp.arange(count, dtype=jnp.float32)[:, None, None, None], (count, size, size, 3)
    )
    return images, jnp.eye(count), jnp.ones(count)


def test_mixup_is_the_reference_s():
    images, targets, mask = batch(64)
    mixed, mixed_targets = mix(images, targets, mask, config_for(mixup=0.2), jax.random.key(0))
    own = np.array([mixed_targets[row, row] for row in range(64)])
    other = np.array([mixed_targets[row, 63 - row] for row in range(64)])
    assert (own >= 0.5).all() and (own <= 1).all()  # max(lambda, 1 - lambda).
    np.testing.assert_allclose(own + other, 1, rtol=1e-6)
    expected = own * np.arange(64) + other * np.arange(64)[::-1]
    np.testing.assert_allclose(
        mixed, np.broadcast_to(expected[:, None, None, None], mixed.shape), rtol=1e-5
    )
    # Beta(0.2, 0.2) is near 0 or 1 more often than not; the mean of the larger is 0.84 or so:
    # E max(l, 1 - l) by numerical integration.
    draws = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    assert own.mean() == pytest.approx(np.maximum(draws, 1 - draws).mean(), abs=0.06)


def test_cutmix_pastes_a_box_and_weighs_labels_by_what_is_left():
    count, size = 64, 16
    images, targets, mask = batch(count, size)
    mixed, mixed_targets = mix(images, targets, mask, config_for(cutmix=1.0), jax.random.key(1))
    mixed = np.asarray(mixed)
    for row in range(count):
        pasted = mixed[row, :, :, 0] == count - 1 - row
        assert (pasted | (mixed[row, :, :, 0] == row)).all()
        ys, xs = np.nonzero(pasted)
        if len(ys):  # One box.
            assert pasted.sum() == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
        assert mixed_targets[row, row] == pytest.approx(1 - pasted.mean(), abs=1e-6)


def test_boxes_have_their_area_where_the_border_does_not_cut_them():
    areas = jnp.full((2000,), 0.25)
    weights = np.asarray(box_weights(jax.random.key(2), areas, 32, 48))
    assert weights.shape == (2000, 32, 48, 1)
    largest = (1 - weights).mean((1, 2, 3)).max()
    assert largest == pytest.approx(0.25, abs=0.01)
    # Centres are uniform: a side of half the length loses an eighth of itself, on average.
    assert (1 - weights).mean() == pytest.approx(0.25 * (7 / 8) ** 2, rel=0.03)


def test_either_where_both_are_on():
    images, targets, mask = batch(400, 16)
    mixed, _ = mix(images, targets, mask, config_for(0.8, 1.0), jax.random.key(3))
    rows = np.arange(400)[:, None]
    whole = np.isclose(mixed[:, :, :, 0].reshape(400, -1), rows) | np.isclose(
        mixed[:, :, :, 0].reshape(400, -1), 399 - rows
    )
    assert 0.4 < whole.all(1).mean() < 0.6  # Of mixup, only the rarest are whole.


def test_halves_and_their_mean_area_are_v2_s():
    # By the definitions in google/automl efficientnetv2/datasets.py, `mixing`, for groups of 32:
    # mixup for the first 16, cutmix for the others, each with its own half reversed, and one weight
    # of the labels for all of the half's boxes.
    config = config_for(0.8, 1.0)
    config.mixing, config.cutmix_labels, config.mix_group = "halves", "mean_area", 32
    images, targets, mask = batch(64, 16)
    mixed, mixed_targets = map(np.asarray, mix(images, targets, mask, config, jax.random.key(5)))
    means = []
    for first in (0, 16, 32, 48):
        rows = np.arange(first, first + 16)
        others = rows[::-1]
        own, other = mixed_targets[rows, rows], mixed_targets[rows, others]
        np.testing.assert_allclose(own + other, 1, rtol=1e-6)
        pixels = mixed[rows].reshape(16, -1)
        if first in (0, 32):
            assert len(set(own.tolist())) == 16 and (own >= 0.5).all()
            expected = (own * rows + other * others)[:, None]
            np.testing.assert_allclose(pixels, expected.repeat(pixels.shape[1], 1), rtol=1e-5)
        else:
            pasted = pixels == others[:, None]
            assert (pasted | (pixels == rows[:, None])).all()
            np.testing.assert_allclose(other, pasted.mean(), rtol=1e-5)
            means.append(pasted.mean())
    assert means[0] != means[1]  # A group's own.


def test_mean_area_without_halves_and_with_images_that_do_not_count():
    config = config_for(cutmix=1.0)
    config.cutmix_labels = "mean_area"
    images, targets, mask = batch(16)
    mixed, mixed_targets = mix(images, targets, mask.at[0].set(0), config, jax.random.key(6))
    mixed, rows = np.asarray(mixed)[:, :, :, 0], np.arange(16)
    pasted = (mixed == rows[::-1, None, None]).mean((1, 2))
    assert pasted[15] == 0 and mixed_targets[15, 15] == 1
    np.testing.assert_allclose(mixed_targets[rows[:15], rows[:0:-1]], pasted[:15].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix_group": 12}, "batch_size=32 is not divisible by .*mix_group=12; .* divides it: 4"),
        ({"mix_group": 1, "mixing": "halves"}, "halves config.augment.mix_group=1; make it even"),
    ],
)
def test_groups_that_are_not_whole_are_refused(tiny, changes, message):
    tiny.augment.update({"mixup_alpha": 0.2, "cutmix_alpha": 0.2, **changes})
    tiny.batch_size = 32
    with pytest.raises(UserError, match=message):
        default.validate(tiny)
    tiny.augment.mixup_alpha = tiny.augment.cutmix_alpha = 0.0
    default.validate(tiny)


def test_boxes_are_v2_s():
    # cutmix_mask in datasets.py, by hand: sides of int(sqrt(0.3) * 15) = 8 and int(sqrt(0.3) * 9)
    # = 4 pixels around an integer; those of 0.1, of 4 and 2.
    for area, most in ((0.3, 32), (0.1, 8)):
        weights = box_weights(jax.random.key(7), jnp.full((500,), area), 15, 9)
        sizes = np.asarray((1 - weights).sum((1, 2, 3)))
        assert sizes.max() == most
        assert (sizes == most).mean() > 0.2


def test_nothing_is_mixed_with_an_image_that_does_not_count():
    images, targets, mask = batch(8)
    mask = mask.at[0].set(0)
    for config in (config_for(mixup=1.0), config_for(cutmix=1.0)):
        mixed, mixed_targets = mix(images, targets, mask, config, jax.random.key(4))
        np.testing.assert_array_equal(mixed[7], images[7])
        np.testing.assert_array_equal(mixed_targets[7], targets[7])


def test_it_is_off_by_default():
    assert not is_mixing(config_for())
    assert is_mixing(config_for(cutmix=0.1))
