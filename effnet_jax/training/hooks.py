"""Hooks: what the profiler, a benchmark or a user's own code does after each step.

They are called with (step, state, metrics). The arrays are on the devices, and the next step reuses
the memory of the state's: a hook copies what it keeps.
"""

from collections.abc import Callable

import jax

from effnet_jax.training.state import TrainState

Hook = Callable[[int, TrainState, dict[str, jax.Array]], None]
