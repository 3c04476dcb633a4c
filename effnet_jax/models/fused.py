"""The inside of an MBConv for training on accelerators: the same function, fewer bytes moved.

EfficientNet's step is bound by memory: each wide map [N, H, W, C] that is written and read again
costs time. Three identities and some barriers avoid most of this. The gradients come from automatic
differentiation of the forms below, so derivatives of every order and mode exist.

A. Statistics of an expansion from its narrow input. For y = xW, with x [n, Cin] and n = N * H * W:
   mean(y) = mean(x) W and var(y) = diag(W' cov(x) W), with cov(x) = x'x / n - mean(x)' mean(x).
   Both are known before y exists, and their gradients reach x through Cin x Cin matrices: no pass
   over a wide map.
B. The gradient of the projection's input, dp W', is wide. The gate's gradient sums it over pixels,
   and BatchNorm's gradient reads it again. Each computes it from the narrow dp, so it is never
   written (`gate_project`).
C. Expansion, BatchNorm, activation and depthwise convolution run over strips of rows that fit into
   on-chip memory. The wide map is recomputed for its gradient and never stored
   (`expand_depthwise`). Barriers keep the strips in order: without them, XLA postpones the sums
   over strips and writes every strip to memory.
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

# Size of a strip's wide map on one device. A v5e has 128 MiB on chip; see docs/performance.md.
STRIP_BYTES = 39 * 2**20

Function = Callable[[Array], Array]
Norm = tuple[Array, Array, Array, Array]  # Mean, variance, scale and bias, float32 [C].


def pointwise(x: Array, kernel: Array) -> Array:
    """1x1 convolution of x [N, H, W, Cin] with kernel [Cin, Cout]."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def expansion_statistics(x: Array, kernel: Array, axis: str | None = None) -> tuple[Array, Array]:
    """`plain_statistics(pointwise(x, kernel))` in float32 [Cout], from x [N, H, W, Cin] (A)."""
    rows = ((0, 1, 2), (0, 1, 2)), ((), ())
    gram = lax.dot_general(x, x, rows, preferred_element_type=jnp.float32)
    gram = operations.over_devices(gram / (x.size // x.shape[-1]), axis)
    mean = operations.over_devices(x.astype(jnp.float32).mean((0, 1, 2)), axis)
    covariance = gram - jnp.outer(mean, mean)
    kernel = kernel.astype(jnp.float32)
    var = jnp.einsum("ic,ij,jc->c", kernel, covariance, kernel, precision="highest")
    return mean @ kernel, var


@jax.custom_jvp
def gate_project(x: Array, gate: Array, kernel: Array) -> Array:
    """`pointwise(x * gate, kernel)` for a gate [N, 1, 1, C] (B).

    The derivatives of the gate and of x share a product with the kernel. The barrier hides this
    from XLA, which would otherwise compute the product once and store it.
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

    Yields ((first input row, last input row + 1), (zero rows above, zero rows below)) for each.
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
      kernel: kernel of the depthwise convolution, [k, k, 1, C].
      rows: number of rows of x in a strip; H for a single strip.
    """
    columns = operations._zeros(x.shape[2], len(kernel), stride, padding)

    @functools.partial(jax.checkpoint, static_argnums=2)
    def strip(x, weights, zeros):
        expand, norm, kernel = weights
        y = act(operations.batch_norm_eval(pointwise(x, expand), *norm, epsilon))
        return operations.padded_depthwise_conv(y, kernel, stride, (zeros, columns))

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

    Only y and narrow arrays are kept for the gradient.

    Args:
      y: [N, h, w, C].
      norm: mean, var, scale and bias, [C].
      gate: maps pooled features [N, 1, 1, C] to a gate of the same shape; None: no gate.
      project: [C, Cout].
    """

    def normalized(y, norm):
        return act(operations.batch_norm_eval(y, *norm, epsilon))

    if gate is None:
        return jax.checkpoint(lambda y, norm, w: pointwise(normalized(y, norm), w))(
            y, norm, project
        )

    @jax.checkpoint
    def pooled(y, norm):
        return operations.spatial_mean(normalized(y, norm))

    @jax.checkpoint
    def projected(y, norm, gate, project):
        return gate_project(normalized(y, norm), gate, project)

    return projected(y, norm, gate(pooled(y, norm)), project)


class Kernel(nn.Module):
    """The kernel of `layers.Conv` or `layers.DepthwiseConv`, without the convolution."""

    shape: tuple[int, int, int, int]
    initializer: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.initializer, self.shape, jnp.float32).astype(self.dtype)


class Moments(layers.BatchNorm):
    """The parameters and running statistics of BatchNorm, without the normalisation."""

    @nn.compact
    def __call__(self, statistics: Callable[..., tuple[Array, Array]], x: Array) -> Norm:
        """Returns the `Norm` of `statistics(x, axis)` by group; updates the running statistics."""
        grouped = x.reshape(-1, self.group or x.shape[0], *x.shape[1:])
        of_groups = jax.vmap(lambda x: statistics(x, axis=self.axis))(grouped)
        scale, bias, running = self.arrays(of_groups[0].shape[-1])
        self.update(running, *(each.mean(0) for each in of_groups))
        repeated = (jnp.repeat(each, grouped.shape[1], 0) for each in of_groups)
        by_example = [each[:, None, None, :] for each in repeated]
        mean, var = by_example if len(grouped) > 1 else (each[0] for each in of_groups)
        return mean, var, scale, bias


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a fused block that are not in the table of blocks.

    Attributes:
      norm: settings of `layers.BatchNorm`: momentum, epsilon, group, axis.
      examples: images that a device processes at a time.
    """

    dtype: jnp.dtype
    padding: str
    norm: dict[str, Any]
    examples: int


def rows_in_strip(shape: tuple[int, ...], channels: int, settings: Settings, stride: int) -> int:
    """Rows of x [N, H, W, Cin] in a strip whose expansion fits into `STRIP_BYTES`."""
    _, h, w, _ = shape
    row = settings.examples * w * channels * settings.dtype.itemsize
    strips = max(1, math.ceil(h * row / STRIP_BYTES))
    return math.ceil(h / strips / stride) * stride


def inside(settings: Settings, act: Function, block: Any, gate: Function | None, x: Array) -> Array:
    """Applies an MBConv in training, from its input x [N, H, W, Cin] to the projection's output."""
    x, epsilon = x.astype(settings.dtype), settings.norm["epsilon"]
    stride, padding = block.stride, settings.padding

    def kernel(name: str, *shape: int, init: Any = layers.conv_init) -> Array:
        return Kernel(shape, init, settings.dtype, name=name)()

    depthwise = kernel(
        "depthwise", block.kernel, block.kernel, 1, block.expanded, init=layers.depthwise_init
    )
    if block.expanded != block.inputs:
        expand = kernel("expand", 1, 1, block.inputs, block.expanded)[0, 0]
        statistics = functools.partial(expansion_statistics, kernel=expand)
        norm = Moments(**settings.norm, name="expand_norm")(statistics, x)
        rows = rows_in_strip(x.shape, block.expanded, settings, stride)
        y = expand_depthwise(
            x,
            expand,
            norm,
            depthwise,
            act=act,
            stride=stride,
            padding=padding,
            epsilon=epsilon,
            rows=rows,
        )
    else:
        y = operations.lax_depthwise_conv(x, depthwise, stride, padding)
    norm = Moments(**settings.norm, name="depthwise_norm")(operations.plain_statistics, y)
    project = kernel("project", 1, 1, block.expanded, block.outputs)[0, 0]
    return excite_project(y, norm, gate, project, act=act, epsilon=epsilon)
