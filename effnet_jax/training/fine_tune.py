"""A new run from the weights of another one."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax.checkpoint import describe_difference, differing, read_weights
from effnet_jax.errors import UserError
from effnet_jax.run.processes import Alone
from effnet_jax.run.writers import say
from effnet_jax.training.state import TrainState
from effnet_jax.trees import path_name, shapes_by_name

CLASSIFIER = "params/classifier/"


def init_from(
    state: TrainState, config: ConfigDict, processes: Alone, classes: Sequence[str]
) -> TrainState:
    """The state with the weights of `config.init_from`, if any; step and optimizer stay fresh.

    `config` is `config.checkpoint`. Weights and averages start at these weights. The classifier's
    are matched by the names of the `classes`; those of new classes stay fresh. Raises UserError
    where there is no checkpoint of the same model.
    """
    if config.init_from is None:
        return state
    found = read_weights(config.init_from, weights=config.init_weights, processes=processes)
    if found is None:
        raise UserError(
            f"config.checkpoint.init_from={config.init_from}: no checkpoint there; give the "
            "workdir of a run, or one of the folders in its checkpoints"
        )
    step, weights, facts = found
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    saved, wanted = shapes_by_name(weights), shapes_by_name(fresh)
    other = differing(saved, wanted)
    if not all(name.startswith(CLASSIFIER) for name in other):
        raise UserError(
            f"config.checkpoint.init_from={config.init_from} has the weights of another model:\n"
            f"{describe_difference(saved, wanted, other)}"
        )
    outputs = {name: shape for name, shape in wanted.items() if name.startswith(CLASSIFIER)}
    before = {name: place for place, name in enumerate(facts["classes"])}
    new = old = slice(None)  # Places of the outputs that are taken: all of them.
    if other or tuple(before) != tuple(classes):
        new = [place for place, name in enumerate(classes) if name in before]
        old = [before[classes[place]] for place in new]
        say(_describe(classes, new, before, outputs))
    say(f"starting from the {config.init_weights} weights of step {step} in {config.init_from}")
    arrays = {path_name(path): array for path, array in jax.tree.leaves_with_path(weights)}
    for path, array in jax.tree.leaves_with_path(fresh):
        if (name := path_name(path)) in outputs:
            taken, arrays[name] = arrays[name], np.array(array)
            arrays[name][..., new] = taken[..., old]

    def put(path: tuple, like: jax.Array) -> jax.Array:
        array = arrays[path_name(path)]
        made = jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__)
        # Memory of its own: the step donates the state, and a buffer can be donated only once.
        return jax.device_put(made, like.sharding, may_alias=False)

    return state.replace(
        **jax.tree.map_with_path(put, fresh), ema=jax.tree.map_with_path(put, state.ema)
    )


def _describe(
    classes: Sequence[str], new: Sequence[int], before: Iterable[str], outputs: Iterable[str]
) -> str:
    """Which of a classifier's classes are taken from weights with the classes `before`."""
    if not new:
        return f"not taken, because the classes differ: {', '.join(outputs)}"
    fresh = [name for name in classes if name not in before]
    listed = f" ({', '.join(fresh[:5])}{', ...' if len(fresh) > 5 else ''})" if fresh else ""
    return (
        f"the classifier's rows are matched by class: {len(new)} of {len(classes)} are taken, "
        f"{len(fresh)} are new{listed}, {len({*before} - {*classes})} of the old are not used"
    )
