"""Inference with BatchNorm folded into the convolution before it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from effnet_jax.models import layers, operations
from effnet_jax.models.network import Network
from effnet_jax.weights.names import list_arrays


def fold(model: Network, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns variables whose kernels include BatchNorm's factors; only its bias is left."""
    flat = flatten_dict(variables, sep="/")
    for array in list_arrays(model.architecture):
        if array.name.endswith("/kernel"):
            kernel = array.name
        if array.leaf == "scale":
            names = [array.name.removesuffix("scale") + "bias"]
            norm = array.name.removeprefix("params/").removesuffix("scale")
            names += [f"batch_stats/{norm}{name}" for name in ("mean", "var")]
            bias, mean, var = (np.asarray(flat[name], np.float64) for name in names)
            factor = flat[array.name] / np.sqrt(var + model.epsilon)
            flat[kernel] = np.asarray(flat[kernel] * factor, np.float32)
            flat[names[0]] = np.asarray(bias - mean * factor, np.float32)
    return unflatten_dict(flat, sep="/")


def _replace(call: Callable, args: tuple, kwargs: dict, context: Any) -> jax.Array:
    """Evaluates BatchNorm as its bias, and a 1x1 convolution as lax's convolution."""
    module = context.module
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    if isinstance(module, layers.BatchNorm):
        return args[0] + operations.along(module.get_variable("params", "bias"), args[0])
    if isinstance(module, layers.Conv):
        kernel = module.get_variable("params", "kernel")
        y = operations.lax_conv(args[0], kernel, module.stride, module.padding)
        if module.use_bias:
            y = y + operations.along(module.get_variable("params", "bias"), y)
        return y
    return call(*args, **kwargs)


def logits(model: Network, variables: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from normalised images [N, h, w, 3] to logits, with BatchNorm folded."""
    folded = fold(model, variables)

    def function(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(_replace):
            return model.apply(folded, images, train=False)[0]

    return function
