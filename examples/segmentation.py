"""Trains a small segmentation head on a frozen backbone, to find discs in noise.

Usage: python examples/segmentation.py lite0.safetensors

Each image has a disc of a random colour on a background of the opposite colour. The head takes
feature maps of strides 2 to 16. The backbone's weights are in the collection "frozen", which the
optimizer never sees.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effnet_jax


def draw(rng: np.random.Generator, count: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [count, size, size, 3] of one disc, and masks [count, size, size]."""
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(size / 4, size * 3 / 4, (2, count, 1, 1))
    radius = rng.uniform(size / 8, size / 3, (count, 1, 1))
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    colours = rng.uniform(-1, 1, (count, 1, 1, 3))
    images = np.where(mask[..., None], colours, -colours)
    images += rng.normal(0, 0.2, images.shape)
    return images.astype(np.float32), mask.astype(np.float32)


class Segmenter(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, images):
        total, size = 0, images.shape[1:3]
        for stride, features in self.backbone(images).items():
            features = nn.Conv(32, (1, 1), name=f"lateral{stride}")(features)
            features = nn.LayerNorm(name=f"norm{stride}")(features)
            total += jax.image.resize(features, (len(images), *size, 32), "bilinear")
        return nn.Conv(1, (1, 1), name="mask")(nn.relu(total))[..., 0]


def main(weights: str, steps: int = 40) -> float:
    """Trains the head and returns the intersection over union on new images."""
    backbone = effnet_jax.backbone(weights=weights, strides=(2, 4, 8, 16), frozen=True)
    model, rng, optimizer = Segmenter(backbone), np.random.default_rng(0), optax.adamw(1e-2)
    variables = jax.jit(model.init)(jax.random.key(0), draw(rng, 1)[0])
    params, rest = variables["params"], {"frozen": variables["frozen"]}

    @jax.jit
    def step(params, state, images, masks):
        def loss(params):
            logits = model.apply({"params": params, **rest}, images)
            return optax.sigmoid_binary_cross_entropy(logits, masks).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(steps):
        params, state, value = step(params, state, *draw(rng, 8))
    images, masks = draw(rng, 8)
    found = jax.jit(model.apply)({"params": params, **rest}, images) > 0
    both, either = jnp.sum(found & (masks > 0)), jnp.sum(found | (masks > 0))
    print(f"loss {value:.3f}, intersection over union {both / either:.2f}")
    return float(both / either)


if __name__ == "__main__":
    main(sys.argv[1])
