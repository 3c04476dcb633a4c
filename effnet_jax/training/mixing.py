"""Mixup and cutmix: each image with the one at the same place in reverse order, on the device.

The references mix so, within a device's share of the batch, and mixup gives the image itself the
larger weight, max(lambda, 1 - lambda): imagenet_input.py of tensorflow/tpu models/official/
efficientnet, and datasets.py of google/automl efficientnetv2, whose boxes cutmix has. Mixup is
arXiv 1710.09412, cutmix 1905.04899.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def is_mixing(config: ConfigDict) -> bool:
    """Whether `config.augment` asks for any mixing."""
    return config.mixup_alpha > 0 or config.cutmix_alpha > 0


def box_weights(key: jax.Array, areas: jax.Array, height: int, width: int) -> jax.Array:
    """Weights [N, height, width, 1]: 0 in a box around a random point of the image, 1 elsewhere.

    `areas` [N] are the fractions of the image that the boxes cover, before its edges cut them off
    and sides are rounded down to even numbers.
    """
    inside = []
    for axis_key, length in zip(jax.random.split(key), (height, width), strict=True):
        half = jnp.floor(jnp.sqrt(areas)[:, None] * length).astype(int) // 2
        centre = jax.random.randint(axis_key, (len(areas), 1), 0, length)
        pixels = jnp.arange(length)[None]
        inside.append((pixels >= centre - half) & (pixels < centre + half))
    rows, columns = inside
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0.0, 1.0)


def mix(
    images: jax.Array, targets: jax.Array, mask: jax.Array, config: ConfigDict, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes each group of `config.mix_group` images with its own reverse.

    Images are [N, H, W, 3], normalised; targets [N, classes]; `config` is `config.augment`. An
    image that `mask` [N] leaves out is mixed with no other.
    """
    count, height, width = images.shape[:3]
    choice_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    both = config.mixup_alpha > 0 and config.cutmix_alpha > 0
    halves = both and config.mixing == "halves"
    length = (config.mix_group or count) // (2 if halves else 1)

    def reverse(x: jax.Array) -> jax.Array:
        return x.reshape(-1, length, *x.shape[1:])[:, ::-1].reshape(x.shape)

    weights, has_box = jnp.ones((count, 1, 1, 1)), jnp.zeros(count, bool)
    if config.mixup_alpha > 0:
        drawn = jax.random.beta(mixup_key, config.mixup_alpha, config.mixup_alpha, (count,))
        weights = jnp.maximum(drawn, 1 - drawn)[:, None, None, None]
    if config.cutmix_alpha > 0:
        areas = 1 - jax.random.beta(cutmix_key, config.cutmix_alpha, config.cutmix_alpha, (count,))
        boxes = box_weights(box_key, areas, height, width)
        has_box = jax.random.bernoulli(choice_key, 0.5 if both else 1.0, (count,))
        if halves:
            has_box = jnp.arange(count) // length % 2 == 1
        weights = jnp.where(has_box[:, None, None, None], boxes, weights)
    has_other = reverse(mask) > 0
    weights = jnp.where(has_other[:, None, None, None], weights, 1.0)
    shares = weights.mean((1, 2, 3))
    if config.cutmix_labels == "mean_area":
        alike = has_box & has_other
        counted = alike.astype(shares.dtype).reshape(-1, length)
        total = (shares.reshape(-1, length) * counted).sum(1) / jnp.maximum(counted.sum(1), 1)
        shares = jnp.where(alike, total.repeat(length), shares)
    images = images * weights + reverse(images) * (1 - weights)
    return images, targets * shares[:, None] + reverse(targets) * (1 - shares[:, None])
