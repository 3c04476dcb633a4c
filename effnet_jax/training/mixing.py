"""Mixup and cutmix: each image with the one at the same place in the reversed batch, on the device.

The reference mixes so, and gives the image itself the larger weight, max(lambda, 1 - lambda)
(models/official/efficientnet/imagenet_input.py; mixup is arXiv 1710.09412, cutmix 1905.04899).
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def is_mixing(config: ConfigDict) -> bool:
    """Whether `config.augment` asks for any mixing."""
    return config.mixup_alpha > 0 or config.cutmix_alpha > 0


def box_weights(key: jax.Array, areas: jax.Array, height: int, width: int) -> jax.Array:
    """Weights [N, height, width, 1]: 0 in a box around a random point of the image, 1 elsewhere.

    `areas` [N] are the fractions of the image that the boxes cover, before its edges cut them off.
    """
    inside = []
    for axis_key, length in zip(jax.random.split(key), (height, width), strict=True):
        half = jnp.sqrt(areas)[:, None] * length / 2
        centre = jax.random.uniform(axis_key, (len(areas), 1), maxval=length)
        pixels = jnp.arange(length, dtype=jnp.float32)[None] + 0.5
        inside.append(jnp.abs(pixels - centre) < half)
    rows, columns = inside
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0.0, 1.0)


def mix(
    images: jax.Array, targets: jax.Array, mask: jax.Array, config: ConfigDict, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch with its own reverse; where mixup and cutmix are on, an image gets either.

    Images are [N, H, W, 3], normalised; targets [N, classes]; `config` is `config.augment`. An
    image that `mask` [N] leaves out is mixed with no other.
    """
    count, height, width = images.shape[:3]
    choice_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    weights = jnp.ones((count, 1, 1, 1))
    if config.mixup_alpha > 0:
        drawn = jax.random.beta(mixup_key, config.mixup_alpha, config.mixup_alpha, (count,))
        weights = jnp.maximum(drawn, 1 - drawn)[:, None, None, None]
    if config.cutmix_alpha > 0:
        areas = 1 - jax.random.beta(cutmix_key, config.cutmix_alpha, config.cutmix_alpha, (count,))
        boxes = box_weights(box_key, areas, height, width)
        share = 0.5 if config.mixup_alpha > 0 else 1.0
        chosen = jax.random.bernoulli(choice_key, share, (count, 1, 1, 1))
        weights = jnp.where(chosen, boxes, weights)
    weights = jnp.where(mask[::-1, None, None, None] > 0, weights, 1.0)
    shares = weights.mean((1, 2, 3))[:, None]
    images = images * weights + images[::-1] * (1 - weights)
    return images, targets * shares + targets[::-1] * (1 - shares)
