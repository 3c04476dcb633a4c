"""A new run from the weights of another one."""

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from effnet_jax.checkpoint import FOLDER, Checkpoints
from effnet_jax.errors import UserError
from effnet_jax.run.processes import Alone
from effnet_jax.run.writers import say
from effnet_jax.training.state import TrainState


def init_from(state: TrainState, config: ConfigDict, processes: Alone) -> TrainState:
    """The state with the weights of `config.init_from`, if any; step and optimizer stay fresh.

    Weights and averages both start at what is taken.

    Args:
      state: fresh.
      config: `config.checkpoint`.
      processes: of the run.

    Raises:
      UserError: there is no checkpoint, or it is of another model.
    """
    if config.init_from is None:
        return state
    path, step = pathlib.Path(config.init_from).expanduser().resolve(), None
    if path.parent.name == FOLDER and path.name.isdigit():
        path, step = path.parent.parent, int(path.name)
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    with Checkpoints(path, config, read_only=True, processes=processes) as checkpoints:
        found = checkpoints.restore_weights(fresh, config.init_weights, step)
    if found is None:
        raise UserError(
            f"config.checkpoint.init_from={config.init_from}: no checkpoint there; give the "
            f"workdir of a run, or one of the folders in its {FOLDER}"
        )
    step, weights = found
    say(f"starting from the {config.init_weights} weights of step {step} in {path}")
    # A copy: the step donates the state, and a buffer can be donated only once.
    ema = jax.tree.map(
        lambda new, old: jax.device_put(jnp.copy(new), old.sharding), weights, state.ema
    )
    return state.replace(**weights, ema=ema)
