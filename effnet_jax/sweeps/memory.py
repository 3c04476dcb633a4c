"""How much memory a run will need, told before it is started."""

import subprocess

import psutil
from ml_collections import ConfigDict

from effnet_jax import models, scaling
from effnet_jax.errors import UserError, check_choice
from effnet_jax.sweeps.launch import visible_gpus

# Of processes on CPU, measured with jax 0.10.2: one that has imported everything, and one in which
# XLA compiles a step, which takes more the more layers there are. After the compilation, or where
# the program comes out of the cache, only the first counts.
PROCESS, COMPILER, COMPILER_LAYER = 0.65 * 2**30, 1.3 * 2**30, 11 * 2**20
# Arrays the size of a layer's output that a training step holds for each layer: the convolution's
# output, what the activation makes of it, and their gradients in part.
COPIES = 2.5
SLOTS = {"rmsprop": 2, "sgd": 1, "adamw": 2}  # Arrays an optimizer keeps beside each parameter.


def predict(config: ConfigDict) -> float:
    """Bytes at the peak of a run, all devices together; right to about a factor of 1.5.

    Weights, their average, gradient and optimizer state, and the activations of a batch; on CPU
    also the process itself, or its compiler where that needs more.
    """
    layers = models.architecture(config.model).layers()
    check_choice("config.optimizer.name", config.optimizer.name, SLOTS)
    arrays = 3 + SLOTS[config.optimizer.name]
    state = 4 * arrays * scaling.cost(layers).parameters
    activations = sum(layer.size**2 * layer.outputs for layer in layers)
    size = 2 if config.model.dtype == "bfloat16" else 4
    step = state + COPIES * size * config.batch_size * activations
    if visible_gpus():
        return step
    return max(PROCESS + step, COMPILER + COMPILER_LAYER * len(layers))


def available() -> float:
    """Bytes that all runs together can take: of the GPUs, where there are any, or this machine's.

    GPUs are taken to be as large as the smallest of them.
    """
    if visible_gpus():
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
        return min(map(float, lines)) * 2**20 * len(visible_gpus())
    return psutil.virtual_memory().available


def check(needs: dict[str, float], parallel: int) -> None:
    """Raises UserError where the runs at work at one time could need more than there is.

    Args:
      needs: predicted bytes of each run.
      parallel: runs at a time.
    """
    free = available()
    if visible_gpus():  # Each run has its own.
        free, parallel = free / parallel, 1
    name, need = max(needs.items(), key=lambda item: item[1])
    if need > free:
        raise UserError(
            f"run {name!r} will need about {need / 2**30:.1f} GiB of memory, and there are "
            f"{free / 2**30:.1f}; take a smaller config.batch_size, or --force to try"
        )
    together = sum(sorted(needs.values())[-parallel:])
    if together > free:
        raise UserError(
            f"{parallel} runs at a time may need {together / 2**30:.1f} GiB of memory, and there "
            f"are {free / 2**30:.1f}; take a lower --parallel, or --force to try"
        )
