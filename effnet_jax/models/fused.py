"""The inside of an MBConv for training on accelerators: the same function, with fewer bytes moved.

EfficientNet's step is bound by memory: what costs is every wide map [N, H, W, C] that is written and
read again. Three identities and a little ordering avoid most of that. Automatic differentiation of
the forms below does the rest, so derivatives of every order and mode exist.

A. Statistics of an expansion from its narrow input. For y = xW, with x [n, Cin] and n = N * H * W:
   mean(y) = mean(x) W and var(y) = diag(W' cov(x) W), with cov(x) = x'x / n - mean(x)' mean(x). Both
   are known before y exists, and their gradients reach x through Cin x Cin matrices: no pass over a
   wide map.
B. The gradient for the projection's input, (dp W'), is wide. The gate's gradient sums it over
   pixels; BatchNorm's gradient reads it again. It is computed for each, from the narrow dp, and
   never written (`gate_project`).
C. Expansion, BatchNorm, activation and depthwise convolution run over strips of rows that fit into
   on-chip memory. The wide map is computed again for its gradient and never stored
   (`expand_depthwise`). Barriers keep the strips in order: without one, XLA postpones their sums
   and writes every strip out.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from effnet_jax.models import layers, operations

Function = Callable[[Array], Array]
Norm = tuple[Array, Array, Array, Array]  # Mean, variance, scale and bias, float32 [C].


def pointwise(x: Array, kernel: Array) -> Array:
    """1x1 convolution of x [N, H, W, Cin] with kernel [Cin, Cout]."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def _over_devices(mean: Array, axis: str | None) -> Array:
    return mean if axis is None else lax.pmean(mean, axis)


def statistics(x: Array, axis: str | None = None) -> tuple[Array, Array]:
    """Mean and biased variance of x [N, H, W, C] over N, H and W, in one pass; float32 [C].

    `axis`: of a mesh, in `jax.shard_map`, whose devices share statistics.
    """
    x = x.astype(jnp.float32)
    mean, square = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))
    mean, square = _over_devices(mean, axis), _over_devices(square, axis)
    return mean, square - jnp.square(mean)


def expansion_statistics(
    x: Array, kernel: Array, axis: str | None = None
) -> tuple[Array, Array]:
    """`statistics(pointwise(x, kernel))`, computed from x [N, H, W, Cin] (A); float32 [Cout]."""
    rows = ((0, 1, 2), (0, 1, 2)), ((), ())
    gram = lax.dot_general(x, x, rows, preferred_element_type=jnp.float32)
    gram = _over_devices(gram / (x.size // x.shape[-1]), axis)
    mean = _over_devices(x.astype(jnp.float32).mean((0, 1, 2)), axis)
    covariance = gram - jnp.outer(mean, mean)
    kernel = kernel.astype(jnp.float32)
    var = jnp.einsum("ic,ij,jc->c", kernel, covariance, kernel, precision="highest")
    return mean @ kernel, var


@jax.custom_jvp
def gate_project(x: Array, gate: Array, kernel: Array) -> Array:
    """`pointwise(x * gate, kernel)` for a gate [N, 1, 1, C] (B).

    The barrier makes the kernel of the gate's derivative another array than that of x's, so XLA
    does not compute their common product once and store it.
    """
    return pointwise(x * gate, kernel)


@gate_project.defjvp
def _gate_project_jvp(primals, tangents):
    x, gate, kernel = primals
    dx, dgate, dkernel = tangents
    out = (
        pointwise(dx * gate, kernel)
        + pointwise(x * dgate, lax.optimization_barrier(kernel))
        + pointwise(x * gate, dkernel)
    )
    return pointwise(x * gate, kernel), out


def strips(
    size: int, kernel: int, stride: int, padding: str, rows: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Splits the output rows of a convolution over `size` rows into strips of `rows` input rows.

    Yields (first and last + 1 input row, zero rows above and below) for each.
    """
    top, _ = operations._zeros(size, kernel, stride, padding)
    outputs, step = -(-size // stride), max(rows // stride, 1)
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        first, last = start * stride - top, (stop - 1) * stride - top + kernel
        yield (max(first, 0), min(last, size)), (max(-first, 0), max(last - size, 0))


def expand_depthwise(
    x: Array,
    expand: Array,
    norm: Norm,
    kernel: Array,
    *,
    act: Function,
    stride: int,
    padding: str,
    epsilon: float,
    rows: int,
) -> Array:
    """Expansion, normalisation, activation and depthwise convolution by strips of rows (C).

    Args:
      x: [N, H, W, Cin].
      expand: [Cin, C].
      norm: mean, var, scale and bias of the expansion's BatchNorm, [C].
      kernel: [k, k, 1, C], of the depthwise convolution.
      rows: of x in a strip; H for one.
    """
    columns = operations._zeros(x.shape[2], len(kernel), stride, padding)

    @functools.partial(jax.checkpoint, static_argnums=2)
    def strip(x, weights, zeros):
        expand, norm, kernel = weights
        y = act(operations.batch_norm_eval(pointwise(x, expand), *norm, epsilon))
        return lax.conv_general_dilated(
            y,
            kernel,
            (stride, stride),
            (zeros, columns),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=y.shape[-1],
        )

    weights, done = (expand, norm, kernel), []
    for (first, last), zeros in strips(x.shape[1], len(kernel), stride, padding, rows):
        rows_in = x[:, first:last]
        if done:
            rows_in, weights, done[-1] = lax.optimization_barrier((rows_in, weights, done[-1]))
        done.append(strip(rows_in, weights, zeros))
    return jnp.concatenate(done, 1)


def excite_project(
    y: Array,
    norm: Norm,
    gate: Function | None,
    project: Array,
    *,
    act: Function,
    epsilon: float,
) -> Array:
    """Normalisation, activation, gate and projection of a depthwise output y (B).

    Kept for the gradient are y and narrow arrays only.

    Args:
      y: [N, h, w, C].
      norm: mean, var, scale and bias, [C].
      gate: pooled features [N, 1, 1, C] -> gate of the same shape; None: no gate.
      project: [C, Cout].
    """

    def normalized(y, norm):
        return act(operations.batch_norm_eval(y, *norm, epsilon))

    if gate is None:
        return jax.checkpoint(lambda y, norm, w: pointwise(normalized(y, norm), w))(y, norm, project)

    @jax.checkpoint
    def pooled(y, norm):
        x = normalized(y, norm)
        return x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)

    @jax.checkpoint
    def projected(y, norm, gate, project):
        return gate_project(normalized(y, norm), gate, project)

    return projected(y, norm, gate(pooled(y, norm)), project)


class Kernel(nn.Module):
    """The kernel of `layers.Conv` or `layers.DepthwiseConv`, by itself."""

    shape: tuple[int, int, int, int]
    initializer: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.initializer, self.shape, jnp.float32).astype(self.dtype)


class Moments(layers.BatchNorm):
    """BatchNorm's arrays: updates the running statistics and returns a `Norm`."""

    @nn.compact
    def __call__(self, mean: Array, var: Array) -> Norm:
        scale, bias, running = self.arrays(mean.shape[-1])
        self.update(running, mean, var)
        return mean, var, scale, bias


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the inside of a block depends on besides its table.

    Attributes:
      norm: settings of `layers.BatchNorm`: momentum, epsilon, group, axis.
      examples: images on a device at a time.
      strip_bytes: most that a strip's wide map takes on a device.
    """

    dtype: jnp.dtype
    padding: str
    norm: dict[str, Any]
    examples: int
    strip_bytes: int


def rows_in_strip(shape: tuple[int, ...], channels: int, settings: Settings, stride: int) -> int:
    """Rows of x [N, H, W, Cin] in a strip whose expansion fits into `strip_bytes`."""
    _, h, w, _ = shape
    row = settings.examples * w * channels * settings.dtype.itemsize
    strips = max(1, math.ceil(h * row / settings.strip_bytes))
    return math.ceil(h / strips / stride) * stride


def inside(settings: Settings, act: Function, block: Any, gate: Callable[[int], Function], x: Array) -> Array:
    """An MBConv from its input x [N, H, W, Cin] to the output of its projection, in training."""
    dtype, norm = settings.dtype, dict(settings.norm)
    group, axis, epsilon = norm["group"], norm["axis"], norm["epsilon"]
    x = x.astype(dtype)
    kernel = functools.partial(Kernel, dtype=dtype)
    depthwise = kernel((block.kernel, block.kernel, 1, block.expanded), layers.depthwise_init, name="depthwise")()
    project = kernel((1, 1, block.expanded, block.outputs), layers.conv_init, name="project")()[0, 0]
    columns = dict(stride=block.stride, padding=settings.padding)
    if block.expanded != block.inputs:
        expand = kernel((1, 1, block.inputs, block.expanded), layers.conv_init, name="expand")()[0, 0]
        mean, var = expansion_statistics(x, expand, axis)
        moments = Moments(**norm, name="expand_norm")(mean, var)
        rows = rows_in_strip(x.shape, block.expanded, settings, block.stride)
        y = expand_depthwise(x, expand, moments, depthwise, act=act, epsilon=epsilon, rows=rows, **columns)
    else:
        y = operations.lax_depthwise_conv(x, depthwise, block.stride, settings.padding)
    moments = Moments(**norm, name="depthwise_norm")(*statistics(y, axis))
    return excite_project(y, moments, gate, project, act=act, epsilon=epsilon)
