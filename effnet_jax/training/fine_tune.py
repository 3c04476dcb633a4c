"""A new run from the weights of another one."""

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax.checkpoint import describe_difference, differing, read_weights
from effnet_jax.errors import UserError
from effnet_jax.run.processes import Alone
from effnet_jax.run.writers import say
from effnet_jax.training.state import TrainState
from effnet_jax.trees import path_name, shapes_by_name


def init_from(state: TrainState, config: ConfigDict, processes: Alone) -> TrainState:
    """The state with the weights of `config.init_from`, if any; step and optimizer stay fresh.

    `config` is `config.checkpoint`. Weights and averages start at these weights; a classifier for
    other classes stays fresh. Raises UserError where there is no checkpoint of the same model.
    """
    if config.init_from is None:
        return state
    found = read_weights(config.init_from, weights=config.init_weights, processes=processes)
    if found is None:
        raise UserError(
            f"config.checkpoint.init_from={config.init_from}: no checkpoint there; give the "
            "workdir of a run, or one of the folders in its checkpoints"
        )
    step, weights, _ = found
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    saved, wanted = shapes_by_name(weights), shapes_by_name(fresh)
    other = differing(saved, wanted)
    if not all(name.startswith("params/classifier/") for name in other):
        raise UserError(
            f"config.checkpoint.init_from={config.init_from} has the weights of another model:\n"
            f"{describe_difference(saved, wanted, other)}"
        )
    if other:
        say(f"not taken, because the classes differ: {', '.join(other)}")
    say(f"starting from the {config.init_weights} weights of step {step} in {config.init_from}")
    arrays = {path_name(path): array for path, array in jax.tree.leaves_with_path(weights)}

    def put(path: tuple, like: jax.Array) -> jax.Array:
        name = path_name(path)
        array = np.asarray(like) if name in other else arrays[name]
        made = jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__)
        # Memory of its own: the step donates the state, and a buffer can be donated only once.
        return jax.device_put(made, like.sharding, may_alias=False)

    return state.replace(
        **jax.tree.map_with_path(put, fresh), ema=jax.tree.map_with_path(put, state.ema)
    )
