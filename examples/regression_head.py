"""Trains a regression head on a frozen backbone, to predict how much of an image a disc covers.

Usage: python examples/regression_head.py lite0.safetensors

With `frozen=False` the backbone is trained too: its arrays are then in "params" and "batch_stats",
and training needs `mutable=["batch_stats"]`, as in examples/training_loop.py.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from segmentation import draw

import effnet_jax


class Regressor(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, images):
        maps = self.backbone(images).values()  # Each [N, H / stride, W / stride, channels].
        pooled = [nn.LayerNorm()(each).mean((1, 2)) for each in maps]
        pooled = jnp.concatenate(pooled, axis=-1)
        return nn.Dense(1, name="output")(nn.relu(nn.Dense(64, name="hidden")(pooled)))[:, 0]


def main(weights: str, steps: int = 100) -> float:
    """Trains the head; returns the root mean square error over the targets' standard deviation."""
    backbone = effnet_jax.backbone(weights=weights, strides=(2, 4, 8, 16), frozen=True)
    model, rng, optimizer = Regressor(backbone), np.random.default_rng(0), optax.adam(3e-3)

    def batch(count: int) -> tuple[np.ndarray, np.ndarray]:
        images, masks = draw(rng, count)
        return images, masks.mean((1, 2))  # The target: the fraction of pixels in the disc.

    variables = jax.jit(model.init)(jax.random.key(0), batch(1)[0])
    params, rest = variables["params"], {"frozen": variables["frozen"]}

    @jax.jit
    def step(params, state, images, targets):
        def loss(params):
            return ((model.apply({"params": params, **rest}, images) - targets) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(steps):
        params, state, _ = step(params, state, *batch(16))
    images, targets = batch(64)
    errors = jax.jit(model.apply)({"params": params, **rest}, images) - targets
    error = float(np.sqrt((np.asarray(errors) ** 2).mean()) / targets.std())
    print(f"root mean square error / standard deviation of the targets: {error:.2f}")
    return error


if __name__ == "__main__":
    main(sys.argv[1])
