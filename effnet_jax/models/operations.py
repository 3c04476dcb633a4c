"""The operations of EfficientNet's layers, in one set for each kind of platform.

`plain` uses `lax` and automatic differentiation, in forward and reverse mode, on any platform. On
CPUs, XLA's depthwise convolution is far slower than memory allows, its sums over N, H and W add one
element at a time, and it stores results that are cheaper to recompute. `cpu` has other forms of
these operations. Its custom gradients, in reverse mode only, agree with the plain ones to second
order. `fused` is `plain`, except that it trains MBConv with fewer bytes moved; see fused.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# Terms of one unrolled sum over rows. With fewer terms the partial sums are large and dominate the
# time. XLA CPU stops vectorising plain sums above 8 terms, but not products.
SUM_TERMS = 8
PRODUCT_TERMS = 14

# "same" is TensorFlow's padding: as few zeros as needed, an odd one at the bottom and right.
# "symmetric" is PyTorch's: (k - 1) // 2 zeros on every side. With odd k both give
# ceil(size / stride) pixels. They differ if the stride is 2 and the size is even, so weights work
# with only one of them.
PADDINGS = ("same", "symmetric")


def _zeros(size, k, stride, padding):
    """Returns the numbers of zeros before and after an axis of `size` pixels."""
    if padding == "symmetric":
        return (k - 1) // 2, (k - 1) // 2
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


def lax_padding(k: int, padding: str) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """Returns the padding of a k x k window in the form that `lax` and `nn.max_pool` accept."""
    return "SAME" if padding == "same" else (_zeros(0, k, 1, padding),) * 2


def _fold_rows(rows, h, terms):
    """Sums h rows, from rows(start, stop) -> [N, stop - start, W, C], into ceil(h / terms).

    On CPU XLA vectorises this elementwise sum and fuses it with the computation of its terms. The
    barrier keeps it out of the slow reduction that follows. N is not summed, so a sharded batch
    needs no communication.
    """
    size = -(-h // terms)
    slabs = [rows(start, min(start + size, h)) for start in range(0, h, size)]
    missing = ((0, 0), (0, size - slabs[-1].shape[1]), (0, 0), (0, 0))
    return lax.optimization_barrier(sum(slabs[:-1], jnp.pad(slabs[-1], missing)))


def _apart(compute, value):
    """Returns the arrays of `compute()`, which XLA does not fuse into later operations.

    jax 0.10 on CPU drops optimization barriers before fusion; 0.12 needs none. A condition that
    XLA cannot simplify is kept: the first number of the array `value` equals itself or is NaN.
    """
    if jax.__version_info__ >= (0, 11):
        return compute()
    first, shapes = value[(0,) * value.ndim], jax.eval_shape(compute)

    def zeros():  # In `shard_map` they vary over devices, like `value`.
        return jax.tree.map(lambda x: jnp.zeros_like(value, x.dtype, x.shape), shapes)

    return lax.cond((first == first) | jnp.isnan(first), compute, zeros)


def along(values: Array, x: Array) -> Array:
    """Returns values [C] with as many axes as x [..., C], so that JAX promotes no rank silently."""
    return values if values.ndim == x.ndim else values.reshape((1,) * (x.ndim - 1) + values.shape)


def _channel_sums(x):
    """Sums of x [N, H, W, C] over N, H and W -> float32 [C]."""
    if not x.size:
        return x.astype(jnp.float32).sum((0, 1, 2))
    folded = _fold_rows(lambda a, b: x[:, a:b].astype(jnp.float32), x.shape[1], SUM_TERMS)
    return folded.sum((0, 1, 2))


def spatial_mean(x: Array) -> Array:
    """Mean of x [N, H, W, C] over H and W -> [N, 1, 1, C]; sums in float32, returns x.dtype."""
    return x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)


def lax_conv(x: Array, kernel: Array, stride: int, padding: str, groups: int = 1) -> Array:
    """XLA's convolution of x [N, H, W, Cin] with kernel [k, k, Cin / groups, Cout]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        lax_padding(len(kernel), padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def lax_depthwise_conv(x: Array, kernel: Array, stride: int, padding: str = "same") -> Array:
    """Depthwise convolution: x [N, H, W, C], kernel [k, k, 1, C] with k odd -> [N, h, w, C].

    h and w are H / stride and W / stride, rounded up.
    """
    if 1 not in x.shape[1:3]:
        return lax_conv(x, kernel, stride, padding, groups=x.shape[-1])
    zeros = tuple(_zeros(size, len(kernel), stride, padding) for size in x.shape[1:3])
    return padded_depthwise_conv(x, kernel, stride, zeros)


def padded_depthwise_conv(
    x: Array, kernel: Array, stride: int, zeros: tuple[tuple[int, int], tuple[int, int]]
) -> Array:
    """`lax_depthwise_conv` with zeros ((above, below), (left, right)) around x.

    Along an axis of one pixel only one tap of the kernel is used, because the others see only
    zeros. With all taps, jaxlib 0.10 on CPU silently computes a wrong derivative of the filter
    gradient with respect to x.
    """
    for axis, size in enumerate(x.shape[1:3]):
        if size == 1:
            first = zeros[axis][0]
            kernel = lax.slice_in_dim(kernel, first, first + 1, axis=axis)
            zeros = (*zeros[:axis], (0, 0), *zeros[axis + 1 :])
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        zeros,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def pointwise_conv(x: Array, kernel: Array) -> Array:
    """1x1 convolution: x [N, H, W, Cin], kernel [1, 1, Cin, Cout] -> [N, H, W, Cout].

    It is computed as a product of two matrices. In the four-dimensional form, the filter gradient
    contracts three axes of x at once; XLA CPU first writes a transposed copy, which doubles the
    time.
    """
    y = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _padded(x, k, stride, padding):
    """Returns x [N, H, W, C] padded with zeros.

    The forward pass and the filter gradient pad the same x, so XLA keeps only the padded array. The
    barrier prevents XLA from recomputing x's producer (BatchNorm, swish) for each of the k*k taps.
    """
    h, w = (_zeros(size, k, stride, padding) for size in x.shape[1:3])
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), h, w, (0, 0))))


def _tap(x, i, j, stride, h, w):
    """The [N, h, w, C] view of x that starts at row i and column j."""
    limits = (x.shape[0], i + (h - 1) * stride + 1, j + (w - 1) * stride + 1, x.shape[3])
    return lax.slice(x, (0, i, j, 0), limits, (1, stride, stride, 1))


def _shifted(x, kernel, stride, padding):
    """The convolution as k*k shifted multiply-adds, which XLA CPU fuses into one fast loop."""
    k = kernel.shape[0]
    h, w = (-(-size // stride) for size in x.shape[1:3])
    x = _padded(x, k, stride, padding)
    return sum(
        _tap(x, i, j, stride, h, w) * kernel[i : i + 1, j : j + 1]
        for i in range(k)
        for j in range(k)
    )


def _shifted_input_grad(dy, kernel, stride, padding, h, w):
    """The gradient for x [N, h, w, C], as shifted multiply-adds of dy.

    With stride 2 the even and odd rows and columns of x see different taps, so each of the four
    phases sums its own quarter of the taps. With a dilated dy, three of four products would be 0.
    """
    k = kernel.shape[0]
    (top, _), (left, _) = (_zeros(size, k, stride, padding) for size in (h, w))
    rows, columns = -(-h // stride), -(-w // stride)
    dy = lax.optimization_barrier(jnp.pad(dy, ((0, 0), (k, k), (k, k), (0, 0))))

    def phase(p, q):
        taps = [
            _tap(dy, k + (p + top - i) // stride, k + (q + left - j) // stride, 1, rows, columns)
            * kernel[i : i + 1, j : j + 1]
            for i in range(k)
            for j in range(k)
            if (p + top - i) % stride == 0 and (q + left - j) % stride == 0
        ]
        return sum(taps) if taps else jnp.zeros_like(_tap(dy, 0, 0, 1, rows, columns))

    if stride == 1:
        return phase(0, 0)
    dx = jnp.stack([jnp.stack([phase(p, q) for q in range(stride)], 3) for p in range(stride)], 2)
    return dx.reshape(dx.shape[0], rows * stride, columns * stride, -1)[:, :h, :w]


def _shifted_filter_grad(x, dy, kernel, stride, padding):
    """The kernel's gradient: for each tap, the sum over N, H and W of dy times the shifted x."""
    k = kernel.shape[0]
    _, h, w, _ = dy.shape
    x, dy = _padded(x, k, stride, padding), lax.optimization_barrier(dy)

    def folded(i, j):
        def rows(start, stop):
            shifted = _tap(x, i + start * stride, j, stride, stop - start, w)
            return dy[:, start:stop].astype(jnp.float32) * shifted.astype(jnp.float32)

        return _fold_rows(rows, h, PRODUCT_TERMS)

    # Fused with the sum of a small array, this would process one number at a time.
    taps = _apart(lambda: [folded(i, j) for i in range(k) for j in range(k)], kernel)
    sums = [tap.sum((0, 1, 2)) for tap in taps]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def cpu_depthwise_conv(x: Array, kernel: Array, stride: int, padding: str = "same") -> Array:
    """The CPU form of `lax_depthwise_conv`.

    The gradient is custom because automatic differentiation of the shifted form moves several times
    the bytes.
    """
    return _depthwise(x, _varying_as(x, kernel), stride, padding)


def _varying_as(x, value):
    """Returns `value`, marked as varying over devices like x for `shard_map` with check_vma.

    A custom gradient varies over devices. Outside of it, automatic differentiation of this function
    sums the gradient over devices.
    """
    return value + jnp.zeros_like(x, value.dtype, shape=value.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    return _shifted(x, kernel, stride, padding)


def _depthwise_bwd(stride, padding, residuals, dy):
    x, kernel = residuals
    dx = _shifted_input_grad(dy, kernel, stride, padding, *x.shape[1:3])
    return dx, _shifted_filter_grad(x, dy, kernel, stride, padding)


_depthwise.defvjp(lambda *args: (_depthwise(*args), args[:2]), _depthwise_bwd)


def batch_norm_eval(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float
) -> Array:
    """Normalises x [N, H, W, C] by statistics [C] or [N, 1, 1, C], in float32; returns x.dtype."""
    mean, var, scale, bias = (along(each, x) for each in (mean, var, scale, bias))
    factor = scale * lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


def over_devices(mean: Array, axis: str | None) -> Array:
    """Mean over the devices of a mesh axis in `jax.shard_map`; unchanged without an axis."""
    return mean if axis is None else lax.pmean(mean, axis)


def plain_statistics(x: Array, axis: str | None = None) -> tuple[Array, Array]:
    """Mean and biased variance of x [N, H, W, C] over N, H and W, and devices; float32 [C].

    Computed in one pass, as in Flax: E[x^2] - E[x]^2 loses digits if the mean is many times the
    standard deviation.
    """
    x = x.astype(jnp.float32)
    mean, square = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))
    mean, square = over_devices(mean, axis), over_devices(square, axis)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def plain_batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, axis: str | None = None
) -> tuple[Array, Array, Array]:
    """Normalises x [N, H, W, C] by its own mean and biased variance over N, H and W.

    Returns y in x.dtype, and mean and var in float32 [C]. Inside `jax.shard_map` the statistics are
    also taken over the devices of the mesh axis `axis`.
    """
    mean, var = plain_statistics(x, axis)
    return batch_norm_eval(x, mean, var, scale, bias, epsilon), mean, var


def cpu_batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, axis: str | None = None
) -> tuple[Array, Array, Array]:
    """The CPU form of `plain_batch_norm`.

    A second pass computes the variance from the squared distances to the mean, which avoids
    cancellation. XLA on CPU needs two passes for E[x^2] - E[x]^2 too.
    """
    scale, bias = (_varying_as(x, value) for value in (scale, bias))
    y, mean, var = _cpu_batch_norm(x, scale, bias, epsilon, axis)
    return y, over_devices(mean, axis), over_devices(var, axis)


def _normalized(x, scale, bias, epsilon, axis):
    """Returns the results of `_cpu_batch_norm`, and the residuals for its gradient."""
    count = max(1, x.size // x.shape[-1])
    mean = over_devices(_channel_sums(x) / count, axis)
    centred = x.astype(jnp.float32) - along(mean, x)
    var = over_devices(_channel_sums(jnp.square(centred)) / count, axis)
    mean, var = _varying_as(x, mean), _varying_as(x, var)
    y = batch_norm_eval(x, mean, var, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, lax.rsqrt(var + epsilon))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cpu_batch_norm(x, scale, bias, epsilon, axis):
    return _normalized(x, scale, bias, epsilon, axis)[0]


def _batch_norm_bwd(epsilon, axis, residuals, cotangents):
    x, scale, mean, inverse = residuals
    dy, *of_statistics = cotangents
    dy, count = dy.astype(jnp.float32), max(1, x.size // x.shape[-1])
    xhat = (x.astype(jnp.float32) - along(mean, x)) * along(inverse, x)
    dbias, dscale = _channel_sums(dy), _channel_sums(dy * xhat)
    factor = scale * inverse
    # The parts of dx that come through mean and var, with opposite sign, the latter without its
    # factor xhat. They are means over all examples and devices.
    by_mean, by_var = (over_devices(each / count, axis) for each in (dbias, dscale))
    dmean, dvar = of_statistics
    by_mean = factor * by_mean - over_devices(dmean, axis) / count
    by_var = factor * by_var - 2 * over_devices(dvar, axis) / (count * inverse)
    dx = along(factor, x) * dy - along(by_mean, x) - xhat * along(by_var, x)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_cpu_batch_norm.defvjp(_normalized, _batch_norm_bwd)


def batch_norm_groups(
    batch_norm: Callable[..., tuple[Array, Array, Array]],
    x: Array,
    scale: Array,
    bias: Array,
    epsilon: float,
    group: int,
) -> tuple[Array, Array, Array]:
    """Applies `batch_norm` to every `group` consecutive examples; mean and var are group means.

    If x is sharded by examples and every group is on one device, no communication is needed.
    """
    each = jax.vmap(functools.partial(batch_norm, epsilon=epsilon), (0, None, None))
    y, mean, var = each(x.reshape(-1, group, *x.shape[1:]), scale, bias)
    return y.reshape(x.shape), mean.mean(0), var.mean(0)


class Operations(NamedTuple):
    """A set of the operations that have more than one form."""

    depthwise_conv: Callable[..., Array]
    batch_norm: Callable[..., tuple[Array, Array, Array]]


SETS = {
    "plain": Operations(lax_depthwise_conv, plain_batch_norm),
    # In training, models/fused.py replaces the layers of MBConv.
    "fused": Operations(lax_depthwise_conv, plain_batch_norm),
    "cpu": Operations(cpu_depthwise_conv, cpu_batch_norm),
}


def choose(name: str, platform: str) -> str:
    """Returns the name of a set in SETS; "auto" chooses the best one for the platform."""
    return {"cpu": "cpu", "tpu": "fused"}.get(platform, "plain") if name == "auto" else name
