"""Layer arithmetic that XLA compiles badly on CPU, in forms that it compiles well.

On TPU and GPU every function here is the plain `lax` operation. On CPU, XLA runs a depthwise convolution
50 times slower than memory allows and sums over columns one element at a time.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _same_padding(size, k, stride):
    """Zeros before and after one axis under TensorFlow's SAME: the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


def _conv(x, kernel, stride):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=DIMENSIONS,
        feature_group_count=x.shape[-1],
    )


def _taps(x, k, stride, out_h, out_w, top, left):
    """The k*k shifted views of zero-padded x: tap (i, j) at (h, w) is x[s*h + i - top, s*w + j - left]."""
    bottom = (out_h - 1) * stride + k - top - x.shape[1]
    right = (out_w - 1) * stride + k - left - x.shape[2]
    x = lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    )
    for i in range(k):
        for j in range(k):
            limit = (
                x.shape[0],
                i + (out_h - 1) * stride + 1,
                j + (out_w - 1) * stride + 1,
                x.shape[3],
            )
            yield i, j, lax.slice(x, (0, i, j, 0), limit, (1, stride, stride, 1))


def _shifted(x, kernel, stride):
    n, h, w, c = x.shape
    k = kernel.shape[0]
    x = lax.optimization_barrier(x)
    (top, _), (left, _) = _same_padding(h, k, stride), _same_padding(w, k, stride)
    y = 0
    for i, j, tap in _taps(x, k, stride, -(-h // stride), -(-w // stride), top, left):
        y += tap * kernel[i, j, 0]
    return y


def _shifted_input_grad(dy, kernel, stride, h, w):
    k = kernel.shape[0]
    dy = lax.optimization_barrier(dy)
    (top, _), (left, _) = _same_padding(h, k, stride), _same_padding(w, k, stride)
    if stride > 1:
        dy = lax.pad(
            dy,
            jnp.zeros((), dy.dtype),
            ((0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)),
        )
    dx = 0
    for i, j, tap in _taps(dy, k, 1, h, w, k - 1 - top, k - 1 - left):
        dx += tap * kernel[k - 1 - i, k - 1 - j, 0]
    return dx


def _rows_filter_grad(x, dy, k, stride):
    n, h, w, c = x.shape
    _, oh, ow, _ = dy.shape
    (top, _), (left, _) = _same_padding(h, k, stride), _same_padding(w, k, stride)
    bottom = (oh - 1) * stride + k - top - h
    right = (ow - 1) * stride + k - left - w
    x = lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    )
    x, dy = lax.optimization_barrier((x, dy))

    def row(r, acc):
        g = lax.dynamic_slice_in_dim(dy, r, 1, 1)[:, 0].astype(jnp.float32)
        rows = lax.dynamic_slice_in_dim(x, r * stride, k, 1).astype(jnp.float32)
        return tuple(
            acc[i * k + j]
            + g * lax.slice_in_dim(rows[:, i], j, j + (ow - 1) * stride + 1, stride, 1)
            for i in range(k)
            for j in range(k)
        )

    acc = lax.fori_loop(0, oh, row, (jnp.zeros((n, ow, c), jnp.float32),) * (k * k))
    return jnp.stack([a.sum((0, 1)) for a in acc]).reshape(k, k, 1, c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x, kernel, stride):
    """Depthwise convolution, SAME: x [N, H, W, C], kernel [k, k, 1, C] -> [N, H/stride, W/stride, C]."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted, stride=stride),
        default=functools.partial(_conv, stride=stride),
    )


def _fwd(x, kernel, stride):
    return depthwise_conv(x, kernel, stride), (x, kernel)


def _bwd(stride, residuals, dy):
    def cpu(x, kernel, dy):
        dx = _shifted_input_grad(dy, kernel, stride, x.shape[1], x.shape[2])
        return dx, _rows_filter_grad(x, dy, kernel.shape[0], stride).astype(kernel.dtype)

    def default(x, kernel, dy):
        return jax.vjp(functools.partial(_conv, stride=stride), x, kernel)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=cpu, default=default)


depthwise_conv.defvjp(_fwd, _bwd)


def pointwise_conv(x, kernel):
    """1x1 convolution as a matrix product: x [N, H, W, Cin], kernel [1, 1, Cin, Cout]."""
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def channel_sums(x):
    """Sums of x [..., C] over every axis but the last, in float32."""

    def by_product(x):
        x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        return jnp.ones((1, x.shape[0]), jnp.float32).dot(x)[0]

    def plain(x):
        return x.astype(jnp.float32).sum(range(x.ndim - 1))

    return lax.platform_dependent(x, cpu=by_product, default=plain)


def _bn_forward(x, scale, bias, epsilon):
    count = x.size // x.shape[-1]
    mean = channel_sums(x) / count
    var = jnp.maximum(channel_sums(jnp.square(x.astype(jnp.float32))) / count - mean**2, 0)
    y = batch_norm_eval(x, mean, var, scale, bias, epsilon)
    return y, mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_train(x, scale, bias, epsilon):
    """Normalise x [N, H, W, C] by its own statistics -> y, mean, var."""
    return _bn_forward(x, scale, bias, epsilon)


def _bn_fwd(x, scale, bias, epsilon):
    y, mean, var = _bn_forward(x, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, lax.rsqrt(var + epsilon))


def _bn_bwd(epsilon, residuals, cotangents):
    x, scale, mean, inv = residuals
    dy = cotangents[0].astype(jnp.float32)
    count = x.size // x.shape[-1]
    xhat = (x.astype(jnp.float32) - mean) * inv
    dbias, dscale = channel_sums(dy), channel_sums(dy * xhat)
    dx = scale * inv * (dy - dbias / count - xhat * (dscale / count))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm_train.defvjp(_bn_fwd, _bn_bwd)


def batch_norm_eval(x, mean, var, scale, bias, epsilon):
    """Normalise x [N, H, W, C] by running statistics."""
    factor = scale * lax.rsqrt(var + epsilon)
    return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype)


def spatial_mean(x):
    """Mean of x [N, H, W, C] over H and W -> [N, 1, 1, C]."""
    return x.mean((1, 2), keepdims=True)
