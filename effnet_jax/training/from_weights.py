"""A new run from weights: its state with their arrays."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from effnet_jax.checkpoint import describe_difference, differing
from effnet_jax.errors import UserError
from effnet_jax.run.writers import say
from effnet_jax.training.state import TrainState
from effnet_jax.trees import path_name, shapes_by_name

CLASSIFIER = "params/classifier/"


def start_from(state: TrainState, weights: Any, classes: Sequence[str], where: str) -> TrainState:
    """The state with the arrays of `weights`, a `weights.Weights`; step and optimizer stay fresh.

    Weights and averages start at these arrays. The classifier's outputs are matched by the names of
    the `classes`; those of new classes stay fresh. Raises UserError for weights of another network;
    `where` they are from is for messages.
    """
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    found = {name: weights.variables[name] for name in fresh}
    saved, wanted = shapes_by_name(found), shapes_by_name(fresh)
    other = differing(saved, wanted)
    if not all(name.startswith(CLASSIFIER) for name in other):
        raise UserError(
            f"{where} has the weights of another model:\n"
            f"{describe_difference(saved, wanted, other)}"
        )
    outputs = [name for name in wanted if name.startswith(CLASSIFIER)]
    before = {name: place for place, name in enumerate(weights.classes)}
    new = old = slice(None)  # Places of the outputs that are taken: all of them.
    taken, line = len(wanted), f"the classifier is taken: its {len(classes)} classes are the same"
    if other or weights.classes != tuple(classes):
        new = [place for place, name in enumerate(classes) if name in before]
        old = [before[classes[place]] for place in new]
        taken -= 0 if new else len(outputs)
        line = _describe(classes, before)
    say(line)
    of_step = "" if weights.step is None else f" of step {weights.step}"
    say(f"starting from {taken} of {len(wanted)} arrays{of_step} in {where}")
    arrays = {path_name(path): array for path, array in jax.tree.leaves_with_path(found)}
    for path, array in jax.tree.leaves_with_path(fresh):
        if (name := path_name(path)) in outputs:
            had, arrays[name] = arrays[name], np.array(array)
            arrays[name][..., new] = had[..., old]

    def put(path: tuple, like: jax.Array) -> jax.Array:
        array = arrays[path_name(path)]
        made = jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__)
        # Memory of its own: the step donates the state, and a buffer can be donated only once.
        return jax.device_put(made, like.sharding, may_alias=False)

    return state.replace(
        **jax.tree.map_with_path(put, fresh), ema=jax.tree.map_with_path(put, state.ema)
    )


def _describe(classes: Sequence[str], before: Collection[str]) -> str:
    """Which of a classifier's classes are taken from weights with the classes `before`."""
    fresh = [name for name in classes if name not in before]
    listed = f" ({', '.join(fresh[:5])}{', ...' if len(fresh) > 5 else ''})" if fresh else ""
    taken, unused = len(classes) - len(fresh), len({*before} - {*classes})
    return (
        f"the classifier's outputs are matched by class: {taken} of {len(classes)} are taken, "
        f"{len(fresh)} are new{listed}, {unused} of the weights' are not used"
    )
