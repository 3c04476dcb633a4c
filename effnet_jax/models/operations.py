"""The layer arithmetic of EfficientNet in forms that XLA compiles well on every platform.

TPU and GPU get the plain operations. XLA's depthwise convolution on CPU is far slower than memory
allows, its sums over N, H and W run one element at a time, and it writes out results that are
cheaper to compute again. `lax.platform_dependent` chooses the form when a function is lowered.
"""

import functools

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


def _sums(x, axes, keepdims=False, fold=True):
    """Sums of x [N, H, W, C] over axes that include H, in float32."""

    def cpu(x):
        folded = _fold_rows(lambda a, b: x[:, a:b].astype(jnp.float32), x.shape[1], SUM_TERMS)
        return folded.sum(axes, keepdims=keepdims)

    def plain(x):
        return x.astype(jnp.float32).sum(axes, keepdims=keepdims)

    return lax.platform_dependent(x, cpu=cpu if fold else plain, default=plain)


def channel_sums(x: Array) -> Array:
    """Sums of x [N, H, W, C] over N, H and W -> float32 [C]."""
    return _sums(x, (0, 1, 2))


@jax.custom_vjp
def spatial_mean(x: Array) -> Array:
    """Mean of x [N, H, W, C] over H and W -> [N, 1, 1, C]; sums in float32, returns x.dtype."""
    # Below 32 rows the plain sum runs from cache, and is no slower.
    total = _sums(x, (1, 2), keepdims=True, fold=x.shape[1] >= 32)
    return (total / (x.shape[1] * x.shape[2])).astype(x.dtype)


spatial_mean.defvjp(
    lambda x: (spatial_mean(x), x),
    lambda x, dy: (jnp.broadcast_to(dy / (x.shape[1] * x.shape[2]), x.shape),),
)


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
    """The plain form of `depthwise_conv`: correct everywhere, slow on CPU."""
    return lax_conv(x, kernel, stride, padding, groups=x.shape[-1])


def pointwise_conv(x: Array, kernel: Array) -> Array:
    """1x1 convolution: x [N, H, W, Cin], kernel [1, 1, Cin, Cout] -> [N, H, W, Cout].

    A product of two matrices. In the four-dimensional form the filter gradient contracts three axes
    of x at once, for which XLA CPU writes a transposed copy first: twice the time.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], -1)


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
    return sum(_tap(x, i, j, stride, h, w) * kernel[i, j, 0] for i in range(k) for j in range(k))


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
            * kernel[i, j, 0]
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

    def tap_sum(i, j):
        def rows(start, stop):
            shifted = _tap(x, i + start * stride, j, stride, stop - start, w)
            return dy[:, start:stop].astype(jnp.float32) * shifted.astype(jnp.float32)

        return _fold_rows(rows, h, PRODUCT_TERMS).sum((0, 1, 2))

    sums = [tap_sum(i, j) for i in range(k) for j in range(k)]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, stride: int, padding: str = "same") -> Array:
    """Depthwise convolution: x [N, H, W, C], kernel [k, k, 1, C] with k odd -> [N, h, w, C].

    h and w are H / stride and W / stride, rounded up. The gradient is written out because automatic
    differentiation of the shifted form moves several times the bytes.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted(x, kernel, stride, padding),
        default=lambda x, kernel: lax_depthwise_conv(x, kernel, stride, padding),
    )


def _depthwise_bwd(stride, padding, residuals, dy):
    def cpu(x, kernel, dy):
        dx = _shifted_input_grad(dy, kernel, stride, padding, *x.shape[1:3])
        return dx, _shifted_filter_grad(x, dy, kernel, stride, padding)

    def default(x, kernel, dy):
        return jax.vjp(lambda *args: lax_depthwise_conv(*args, stride, padding), x, kernel)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=cpu, default=default)


depthwise_conv.defvjp(lambda *args: (depthwise_conv(*args), args[:2]), _depthwise_bwd)


def batch_norm_eval(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float
) -> Array:
    """Normalises x [N, H, W, C] by statistics [C]; computes in float32, returns x.dtype."""
    factor = scale * lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


def _over_devices(sums, axis):
    """Sums over the devices of a mesh axis; unchanged without an axis."""
    return sums if axis is None else lax.psum(sums, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm_train(
    x: Array, scale: Array, bias: Array, epsilon: float, axis: str | None = None
) -> tuple[Array, Array, Array]:
    """Normalises x [N, H, W, C] by its own mean and biased variance over N, H and W.

    Returns y in x.dtype, and mean and var in float32 [C] for running averages: the gradient ignores
    their cotangents. The variance takes a second pass for the squared distance from the mean. It
    can't cancel, and XLA on CPU does not compute E[x^2] - E[x]^2 in one pass either.

    Inside `jax.shard_map` the statistics are also taken over the devices of the mesh axis `axis`,
    and the gradients of scale and bias cover this device's part of x.
    """
    count = _over_devices(x.size // x.shape[-1], axis)
    mean = _over_devices(channel_sums(x), axis) / count
    var = _over_devices(channel_sums(jnp.square(x.astype(jnp.float32) - mean)), axis) / count
    return batch_norm_eval(x, mean, var, scale, bias, epsilon), mean, var


def _batch_norm_fwd(x, scale, bias, epsilon, axis):
    y, mean, var = batch_norm_train(x, scale, bias, epsilon, axis)
    return (y, mean, var), (x, scale, mean, lax.rsqrt(var + epsilon))


def _batch_norm_bwd(epsilon, axis, residuals, cotangents):
    x, scale, mean, inverse = residuals
    dy = cotangents[0].astype(jnp.float32)
    xhat = (x.astype(jnp.float32) - mean) * inverse
    sums = channel_sums(dy), channel_sums(dy * xhat)
    dbias, dscale = (each.astype(scale.dtype) for each in sums)
    count = _over_devices(x.size // x.shape[-1], axis)
    dmean, dvar = (each / count for each in _over_devices(sums, axis))
    dx = scale * inverse * (dy - dmean - xhat * dvar)
    return dx.astype(x.dtype), dscale, dbias


batch_norm_train.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def batch_norm_groups(
    x: Array, scale: Array, bias: Array, epsilon: float, group: int
) -> tuple[Array, Array, Array]:
    """`batch_norm_train` of each `group` consecutive examples; mean and var are means over groups.

    Where x is sharded by examples and every group is on one device, the devices send nothing.
    """
    each = jax.vmap(functools.partial(batch_norm_train, epsilon=epsilon), (0, None, None))
    y, mean, var = each(x.reshape(-1, group, *x.shape[1:]), scale, bias)
    return y.reshape(x.shape), mean.mean(0), var.mean(0)


@jax.custom_vjp
def swish(x: Array) -> Array:
    """x * sigmoid(x), any shape. The gradient keeps only x, not the sigmoid."""
    return x * jax.nn.sigmoid(x)


def _swish_bwd(x, dy):
    # The sigmoid by tanh: written as in the forward pass, XLA would see that the two are equal and
    # keep the first in memory until here, which on CPU costs more than to compute it again.
    gate = 0.5 * jnp.tanh(0.5 * x) + 0.5
    return (dy * (gate + x * gate * (1 - gate)),)


swish.defvjp(lambda x: (swish(x), x), _swish_bwd)
