"""Trains a network of this package in your own training loop: handwritten digits and AdamW.

Usage: python examples/training_loop.py

A network is a Flax module. With train=True, `apply` draws dropout and stochastic depth from two
random streams and returns the updated running statistics of BatchNorm, which the loop keeps.
"""

from collections.abc import Iterable

import jax
import numpy as np
import optax

import effnet_jax
from effnet_jax.data.digits import pixels_and_labels


def fit(model, variables: dict, batches: Iterable[tuple], optimizer) -> tuple[dict, list[float]]:
    """Trains on batches of normalised images [N, h, w, 3] and labels [N].

    Returns the trained variables and the loss of each step.
    """

    @jax.jit
    def step(variables, state, key, images, labels):
        def loss(params):
            streams = dict(zip(("dropout", "stochastic_depth"), jax.random.split(key), strict=True))
            (logits, _), updated = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs=streams,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        params = variables["params"]
        (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return {"params": optax.apply_updates(params, updates), **updated}, state, value

    state, losses = optimizer.init(variables["params"]), []
    for number, (images, labels) in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(0), number)
        variables, state, loss = step(variables, state, key, images, labels)
        losses.append(loss)
    return variables, [float(loss) for loss in losses]


def digits(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """Digits enlarged twofold to images [n, 16, 16, 3] in -1..1, and their labels."""
    pixels, labels = pixels_and_labels(test)
    large = pixels.repeat(2, axis=1).repeat(2, axis=2)[..., None].repeat(3, axis=3)
    return large.astype(np.float32) / 127.5 - 1, labels


def main(model: str = "w=0.5,d=0.3,r=16", steps: int = 300, batch: int = 64) -> float:
    """Trains and returns the accuracy on the test digits."""
    settings = {"stem_stride": 1, "batch_norm_momentum": 0.9, "zero_classifier": True}
    model = effnet_jax.create_model(model, num_classes=10, **settings)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    (images, labels), rng = digits(test=False), np.random.default_rng(0)
    chosen = (rng.integers(0, len(images), batch) for _ in range(steps))
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    variables, losses = fit(
        model, variables, ((images[n], labels[n]) for n in chosen), optax.adamw(schedule)
    )
    images, labels = digits(test=True)
    logits, _ = jax.jit(model.apply, static_argnames="train")(variables, images, train=False)
    accuracy = float((np.asarray(logits).argmax(-1) == labels).mean())
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
