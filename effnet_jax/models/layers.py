"""Layers, initialised as in tensorflow/tpu models/official/efficientnet/efficientnet_model.py."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from effnet_jax.models import operations

# An untruncated normal with variance 2 / (kernel * kernel * outputs).
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform within +-1 / sqrt(outputs).
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def depthwise_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """`conv_init` for a [k, k, 1, C] kernel: each channel has one output, so the fan is k * k."""
    return math.sqrt(2 / (shape[0] * shape[1])) * jax.random.normal(key, shape, dtype)


def stochastic_depth(x: jax.Array, survival: float, key: jax.Array) -> jax.Array:
    """Drops whole samples of a residual branch, [N, H, W, C], and rescales the others.

    Source: tensorflow/tpu models/official/efficientnet/utils.py, drop_connect; arXiv 1603.09382.
    """
    kept = jnp.floor(survival + jax.random.uniform(key, (x.shape[0], 1, 1, 1), jnp.float32))
    return x * (kept / survival).astype(x.dtype)


class Conv(nn.Module):
    """Convolution; a 1x1 one is computed as a matrix product."""

    filters: int
    kernel: int
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    padding: str = "same"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.filters)
        kernel = self.param("kernel", conv_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel == 1 and self.stride == 1:
            x = operations.pointwise_conv(x, kernel)
        else:
            x = operations.lax_conv(x, kernel, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.filters,), jnp.float32)
            x = x + operations.along(bias.astype(self.dtype), x)
        return x


class DepthwiseConv(nn.Module):
    """Convolution with one kernel per channel. Parameter: kernel [k, k, 1, C]."""

    operation: Callable[..., jax.Array]  # Such as `operations.lax_depthwise_conv`.
    kernel: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    padding: str = "same"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        kernel = self.param("kernel", depthwise_init, shape, jnp.float32).astype(self.dtype)
        return self.operation(x.astype(self.dtype), kernel, self.stride, self.padding)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis; statistics in float32.

    Under jit over a sharded batch the statistics are those of the global batch, or of groups of it.
    Running statistics average over the groups; the variance is biased, as in the reference.
    """

    operation: Callable[..., tuple[jax.Array, ...]]  # Such as `operations.plain_batch_norm`.
    train: bool  # Normalise by the batch's statistics and update the running ones.
    momentum: float  # Fraction of the running value that is kept at each update.
    epsilon: float
    group: int | None = None  # Consecutive examples that share statistics; None: all.
    axis: str | None = None  # In `jax.shard_map`: the mesh axis whose devices share statistics.
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    def arrays(self, channels: int):
        """Returns scale, bias, and the variables of the running mean and variance."""
        shape = (channels,)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        return scale, bias, (mean, var)

    def update(self, running, mean: jax.Array, var: jax.Array) -> None:
        """Updates the running statistics with those of a batch."""
        if not self.is_initializing():
            for each, new in zip(running, (mean, var), strict=True):
                each.value = self.momentum * each.value + (1 - self.momentum) * new

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias, (mean, var) = self.arrays(x.shape[-1])
        if not self.train:
            return operations.batch_norm_eval(x, mean.value, var.value, scale, bias, self.epsilon)
        if self.group in (None, x.shape[0]):
            normalize = functools.partial(self.operation, axis=self.axis)
        else:
            grouped = functools.partial(operations.batch_norm_groups, self.operation)
            normalize = functools.partial(grouped, group=self.group)
        y, batch_mean, batch_var = normalize(x, scale, bias, self.epsilon)
        self.update((mean, var), batch_mean, batch_var)
        return y
