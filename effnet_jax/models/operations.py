"""The layer arithmetic of EfficientNet, as sets of operations: one for each kind of platform.

`plain` is `lax` and automatic differentiation: right everywhere, in forward and reverse mode. `cpu`
has forms of its own, because XLA's depthwise convolution on CPU is far slower than memory allows,
its sums over N, H and W run one element at a time, and it writes out results that are cheaper to
compute again. Its gradients are custom ones, in reverse mode only, and agree with the plain ones to
second order. `fused` is plain, but trains MBConv's inside with fewer bytes moved: see fused.py.
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

# Zeros around an image. TensorFlow's "SAME": as few as are needed, an odd one at the bottom and
# right. PyTorch's: (k - 1) // 2 on every side. With odd k both leave ceil(size / stride) pixels.
# They differ where the stride is 2 and the size even, so weights fit only one of them.
PADDINGS = ("same", "symmetric")


def _zeros(size, k, stride, padding):
    """Zeros before and after an axis of `size` pixels."""
    if padding == "symmetric":
        return (k - 1) // 2, (k - 1) // 2
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


def lax_padding(k: int, padding: str) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """`padding` of a k x k window, as `lax` and `nn.max_pool` take it."""
    return "SAME" if padding == "same" else (_zeros(0, k, 1, padding),) * 2


def _fold_rows(rows, h, terms):
    """Sums h rows, from rows(start, stop) -> [N, stop - start, W, C], into ceil(h / terms).

    On CPU XLA vectorises this elementwise sum and fuses it with the computation of its terms. The
    barrier keeps it out of the slow reduction that follows. N isn't summed, so a sharded batch
    needs no communication.
    """
    size = -(-h // terms)
    slabs = [rows(start, min(start + size, h)) for start in range(0, h, size)]
    missing = ((0, 0), (0, size - slabs[-1].shape[1]), (0, 0), (0, 0))
    return lax.optimization_barrier(sum(slabs[:-1], jnp.pad(slabs[-1], missing)))


def _apart(compute, value):
    """The arrays of `compute()`, none of which XLA fuses into what follows.

    jax 0.10 on CPU drops optimization barriers before it fuses, 0.12 needs none. A condition that
    XLA can't see through stays: one number of `value`, an array, is itself or NaN.
    """
    if jax.__version_info__ >= (0, 11):
        return compute()
    first, shapes = value[(0,) * value.ndim], jax.eval_shape(compute)

    def zeros():  # That differ between devices in `shard_map` as `value` does.
        return jax.tree.map(lambda x: jnp.zeros_like(value, x.dtype, x.shape), shapes)

    return lax.cond((first == first) | jnp.isnan(first), compute, zeros)


def along(values: Array, x: Array) -> Array:
    """Values [C] with as many axes as x [..., C]: no rank is promoted silently."""
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

    Along an axis of one pixel the kernel has one tap, for the others see only zeros. With them
    jaxlib 0.10 gets the derivative of the filter's gradient for x wrong on CPU, silently.
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

    A product of two matrices. In the four-dimensional form the filter gradient contracts three axes
    of x at once, for which XLA CPU writes a transposed copy first: twice the time.
    """
    y = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _padded(x, k, stride, padding):
    """x [N, H, W, C] with zeros around it.

    The forward pass and the filter gradient pad the same x, so XLA keeps only the padded array. The
    barrier keeps x's producer (BatchNorm, swish) from being computed again for each of k*k taps.
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
    """Gradient for x [N, h, w, C], as shifted multiply-adds of dy.

    With stride 2 the even and odd rows and columns of x see different taps, so each of the four
    phases sums its own quarter of the taps. A dilated dy would multiply by 0 three times in four.
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
    """Gradient for the kernel: for every tap, the sum over N, H and W of dy times the shifted x."""
    k = kernel.shape[0]
    _, h, w, _ = dy.shape
    x, dy = _padded(x, k, stride, padding), lax.optimization_barrier(dy)

    def folded(i, j):
        def rows(start, stop):
            shifted = _tap(x, i + start * stride, j, stride, stop - start, w)
            return dy[:, start:stop].astype(jnp.float32) * shifted.astype(jnp.float32)

        return _fold_rows(rows, h, PRODUCT_TERMS)

    # In one fusion with the sum of a small array, this would go one number at a time.
    taps = _apart(lambda: [folded(i, j) for i in range(k) for j in range(k)], kernel)
    sums = [tap.sum((0, 1, 2)) for tap in taps]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def cpu_depthwise_conv(x: Array, kernel: Array, stride: int, padding: str = "same") -> Array:
    """The CPU form of `lax_depthwise_conv`.

    The gradient is written out because automatic differentiation of the shifted form moves several
    times the bytes.
    """
    return _depthwise(x, _varying_as(x, kernel), stride, padding)


def _varying_as(x, value):
    """`value`, which `shard_map` (with check_vma) then takes to differ between devices as x does.

    A custom gradient differs so; automatic differentiation sums it over devices here, outside.
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
    """Normalises x [N, H, W, C] by statistics, [C] or [N, 1, 1, C]; in float32, returns x.dtype."""
    mean, var, scale, bias = (along(each, x) for each in (mean, var, scale, bias))
    factor = scale * lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


def over_devices(mean: Array, axis: str | None) -> Array:
    """Mean over the devices of a mesh axis in `jax.shard_map`; unchanged without an axis."""
    return mean if axis is None else lax.pmean(mean, axis)


def plain_statistics(x: Array, axis: str | None = None) -> tuple[Array, Array]:
    """Mean and biased variance of x [N, H, W, C] over N, H and W, and devices; float32 [C].

    In one pass, as Flax's: E[x^2] - E[x]^2 loses digits where the mean is many times the deviation.
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

    The variance takes a second pass for the squared distance from the mean. It can't cancel, and
    XLA on CPU does not compute E[x^2] - E[x]^2 in one pass either.
    """
    scale, bias = (_varying_as(x, value) for value in (scale, bias))
    y, mean, var = _cpu_batch_norm(x, scale, bias, epsilon, axis)
    return y, over_devices(mean, axis), over_devices(var, axis)


def _normalized(x, scale, bias, epsilon, axis):
    """The results of `_cpu_batch_norm`, and what its gradient needs."""
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
    # Means over all examples and devices of the gradients by mean and by var, both divided by what
    # one value of x moves them.
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
    """`batch_norm` of each `group` consecutive examples; mean and var are means over groups.

    Where x is sharded by examples and every group is on one device, the devices send nothing.
    """
    each = jax.vmap(functools.partial(batch_norm, epsilon=epsilon), (0, None, None))
    y, mean, var = each(x.reshape(-1, group, *x.shape[1:]), scale, bias)
    return y.reshape(x.shape), mean.mean(0), var.mean(0)


class Operations(NamedTuple):
    """One set: the operations that have more than one form."""

    depthwise_conv: Callable[..., Array]
    batch_norm: Callable[..., tuple[Array, Array, Array]]


SETS = {
    "plain": Operations(lax_depthwise_conv, plain_batch_norm),
    # In training, models/fused.py takes the place of whole blocks.
    "fused": Operations(lax_depthwise_conv, plain_batch_norm),
    "cpu": Operations(cpu_depthwise_conv, cpu_batch_norm),
}


def choose(name: str, platform: str) -> str:
    """The set of `config.model.operations`: "auto" is the one that is best on a platform."""
    return {"cpu": "cpu", "tpu": "fused"}.get(platform, "plain") if name == "auto" else name
