"""Mixup and cutmix by hand, and the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax import config as default
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
