"""The CPU forms of layer arithmetic against the plain ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from effnet_jax.models import layers, operations

SIZES = [(8, 9), (7, 10), (1, 1), (2, 3)]


def plain_depthwise(x, kernel, stride, padding="same"):
    zeros = len(kernel) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if padding == "same" else [(zeros, zeros), (zeros, zeros)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=lax.Precision.HIGHEST,
    )


def value_and_grads(operation, x, kernel, stride):
    def scalar(x, kernel):
        y = operation(x, kernel, stride)
        # Another weight for every output, so that no gradient cancels.
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y.astype(jnp.float32) * weights).sum(), y

    grads, y = jax.grad(scalar, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, *grads


def assert_close(actual, expected, relative=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5), (1, 2))))
def test_depthwise_and_both_gradients_equal_lax(kernel, stride):
    rng = np.random.default_rng(kernel)
    w = rng.normal(size=(kernel, kernel, 1, 6)).astype("f")
    inputs = [rng.normal(size=(2, *size, 6)).astype("f") for size in SIZES]

    @functools.partial(jax.jit, static_argnums=0)  # All sizes in one program: less to compile.
    def run(operation, inputs):
        return [value_and_grads(operation, x, w, stride) for x in inputs]

    ours, plain = run(operations.cpu_depthwise_conv, inputs), run(plain_depthwise, inputs)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_and_both_gradients_equal_lax_with_symmetric_padding(kernel):
    keys = jax.random.split(jax.random.key(kernel), 2)
    w = jax.random.normal(keys[1], (kernel, kernel, 1, 6))
    for height, width in [(8, 7), (1, 2)]:
        x = jax.random.normal(keys[0], (2, height, width, 6))
        found, expected = (
            jax.jit(functools.partial(value_and_grads, operation, stride=2))(x, w)
            for operation in (
                functools.partial(operations.cpu_depthwise_conv, padding="symmetric"),
                functools.partial(plain_depthwise, padding="symmetric"),
            )
        )
        for actual, right in zip(found, expected, strict=True):
            assert_close(actual, right)
        same = plain_depthwise(x, w, 2)
        assert not np.allclose(found[0], same)  # An even side tells the two apart.


@pytest.mark.parametrize(("kernel", "size"), [(1, 8), (3, 8), (3, 9), (7, 8), (7, 9)])
def test_symmetric_padding_of_convolutions(kernel, size):
    x = jax.random.normal(jax.random.key(0), (1, size, size, 2))
    module = layers.Conv(4, kernel, 2, padding="symmetric")
    y, variables = module.init_with_output(jax.random.key(1), x)
    zeros = [(kernel // 2, kernel // 2)] * 2
    padded = jnp.pad(x, [(0, 0), *zeros, (0, 0)])
    expected = lax.conv_general_dilated(
        padded,
        variables["params"]["kernel"],
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert_close(y, expected)
    same = layers.Conv(4, kernel, 2).apply(variables, x)
    assert same.shape == y.shape
    assert np.allclose(same, y) == (size == 9 or kernel == 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_second_derivatives_of_depthwise_on_a_row_of_pixels(size):
    # In jaxlib 0.10 on CPU those of lax were wrong by more than their size for x.
    keys = jax.random.split(jax.random.key(0), 4)
    x, w = jax.random.normal(keys[0], (4, *size, 6)), jax.random.normal(keys[1], (5, 5, 1, 6))
    dy, vector = jax.random.normal(keys[2], x.shape), jax.random.normal(keys[3], w.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def second(operation, x, w, dy, vector):
        def filter_grad(x):
            return jax.vjp(lambda w: operation(x, w, 1), w)[1](dy)[0]

        return jax.vjp(filter_grad, x)[1](vector)[0]

    right = second(lambda x, w, _: operations._shifted(x, w, 1, "same"), x, w, dy, vector)
    for operation in (operations.lax_depthwise_conv, operations.cpu_depthwise_conv):
        assert_close(second(operation, x, w, dy, vector), right)


def test_depthwise_in_bfloat16():
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 8), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (5, 5, 1, 8), jnp.bfloat16)
    ours, exact = (
        jax.jit(functools.partial(value_and_grads, operation, stride=1))
        for operation in (operations.cpu_depthwise_conv, plain_depthwise)
    )
    ours, exact = ours(x, w), exact(x.astype(jnp.float32), w.astype(jnp.float32))
    for actual, expected in zip(ours, exact, strict=True):
        assert actual.dtype == jnp.bfloat16
        assert_close(actual.astype(jnp.float32), expected, 0.02)


def test_each_platform_has_its_set():
    assert [operations.choose("auto", each) for each in ("cpu", "gpu", "tpu")] == [
        "cpu",
        "plain",
        "fused",
    ]
    assert operations.choose("plain", "cpu") == "plain"
    x, w = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))
    counts = {}
    for name, chosen in operations.SETS.items():
        step = jax.jit(functools.partial(value_and_grads, chosen.depthwise_conv, stride=2))
        counts[name] = step.lower(x, w).as_text().count("stablehlo.convolution")
    assert counts == {"plain": 3, "fused": 3, "cpu": 0}


def test_depthwise_over_a_sharded_batch_gathers_nothing():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(
        jax.random.normal(jax.random.key(0), (16, 9, 9, 8)),
        NamedSharding(mesh, PartitionSpec("data")),
    )
    w = jax.random.normal(jax.random.key(1), (3, 3, 1, 8))
    step = jax.jit(functools.partial(value_and_grads, operations.cpu_depthwise_conv, stride=1))
    text = step.lower(x, w).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    plain = jax.jit(functools.partial(value_and_grads, plain_depthwise, stride=1))
    for actual, expected in zip(step(x, w), plain(x, w), strict=True):
        assert_close(actual, expected)


def test_pointwise_is_a_1x1_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 6))
    w = jax.random.normal(jax.random.key(1), (1, 1, 6, 10))

    def plain(x, w, stride):
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours = value_and_grads(lambda x, w, _: operations.pointwise_conv(x, w), x, w, 1)
    for actual, expected in zip(ours, value_and_grads(plain, x, w, 1), strict=True):
        assert_close(actual, expected)


def plain_batch_norm(x, scale, bias, epsilon):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


def test_batch_norm_and_its_gradients_equal_the_textbook():
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 * jax.random.normal(keys[0], (4, 6, 5, 7)) + 2
    scale, bias = jax.random.normal(keys[1], (2, 7))
    weights = jax.random.normal(keys[2], x.shape)

    def run(function):
        def scalar(x, scale, bias):
            y, mean, var = function(x, scale, bias, 1e-3)
            return (y * weights).sum(), (y, mean, var)

        grads, values = jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(x, scale, bias)
        return *values, *grads

    ours, plain = run(operations.cpu_batch_norm), run(plain_batch_norm)
    for actual, expected in zip(ours, plain, strict=True):
        assert_close(actual, expected)
    _, mean, var = ours[:3]
    y = operations.batch_norm_eval(x, mean, var, scale, bias, 1e-3)
    assert_close(y, ours[0])


def test_batch_norm_over_groups_equals_the_textbook_on_each():
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 * jax.random.normal(keys[0], (6, 12, 5, 7)) + 2
    scale, bias = jax.random.normal(keys[1], (2, 7))
    weights = jax.random.normal(keys[2], x.shape)

    def plain(x, scale, bias, epsilon, group):
        parts = [plain_batch_norm(part, scale, bias, epsilon) for part in jnp.split(x, 6 // group)]
        y, mean, var = zip(*parts, strict=True)
        return jnp.concatenate(y), sum(mean) / len(mean), sum(var) / len(var)

    def run(function):
        def scalar(x, scale, bias):
            y, mean, var = function(x, scale, bias, 1e-3, group=2)
            return (y * weights).sum(), (y, mean, var)

        grads, values = jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(x, scale, bias)
        return *values, *grads

    for actual, expected in zip(
        run(functools.partial(operations.batch_norm_groups, operations.cpu_batch_norm)),
        run(plain),
        strict=True,
    ):
        assert_close(actual, expected)


def test_batch_norm_is_accurate_where_the_mean_is_large():
    # Here E[x^2] - E[x]^2 would lose half the digits of float32.
    x = 100 + jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    y, mean, var = operations.cpu_batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-3)
    exact = np.asarray(x, np.float64)
    assert_close(mean, exact.mean((0, 1, 2)))
    assert_close(var, exact.var((0, 1, 2)))
    assert_close(np.asarray(y).std((0, 1, 2)), np.ones(3), 1e-2)


def test_this_jaxlib_computes_the_fusion_that_0_10_2_gets_wrong():
    # jax issue 39103: a matrix-vector product under vmap, then a sum by row, over more than 16k
    # rows: jaxlib 0.10.2 returns wrong numbers on CPU, silently. requirements.txt avoids it.
    rows = jnp.arange(32_769, dtype=jnp.float32)
    x = jnp.stack([rows, jnp.zeros_like(rows), jnp.zeros_like(rows)], axis=1)

    def f(x):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)

    # Optimised as programs are outside the tests; see conftest.py.
    f = jax.jit(f).lower(x).compile({"xla_backend_optimization_level": 3})
    np.testing.assert_array_equal(f(x), np.arange(32_769, dtype=np.float32) ** 2)
