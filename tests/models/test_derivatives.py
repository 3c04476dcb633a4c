"""Every set of operations has the derivatives of the plain form, of first and second order."""

import copy
import functools

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec

from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.models import operations
from effnet_jax.models.network import Stage, Stem

SIZE = 8


ROWS = (Stage(2, 4, 1, expand=2),)


def tiny(name: str, rows=ROWS, **settings):
    """A network of a stem and one MBConv with expansion and gate: second orders compile long."""
    base = models.BASES["efficientnet"]
    values = vars(base) | {"stages": rows, "stem": Stem(4)}
    spec = type(base)(**values).architecture(models.scaling.Coefficients(1.0, 1.0, SIZE), 3)
    config = config_lib.get_config("b0").model
    config.num_classes = 3
    model = models.build(config)
    return model.clone(architecture=spec, operations=name, dropout=0.0, **settings)


@functools.cache
def inputs():
    """Weights far from symmetric, as one vector; images and labels."""
    keys = jax.random.split(jax.random.key(1), 3)
    variables = models.init_variables(tiny("plain"), SIZE, keys[0])
    flat, unravel = ravel_pytree(variables["params"])
    flat = flat + 0.3 * jax.random.normal(keys[1], flat.shape)
    images = jax.random.normal(keys[2], (4, SIZE, SIZE, 3))
    return flat, unravel, variables["batch_stats"], images, jnp.arange(4) % 3


def make_loss(name: str, train: bool, group: int | None = None, of_statistics: bool = False):
    """`(flat weights, images) -> loss`, with a term for the batch's statistics if asked for."""
    _, unravel, batch_stats, _, labels = inputs()
    model = tiny(name, batch_norm_group=group)

    def loss(flat, images):
        variables = {"params": unravel(flat), "batch_stats": batch_stats}
        rngs = {"stochastic_depth": jax.random.key(0)}
        (logits, _), updated = model.apply(
            variables, images, train=train, mutable=["batch_stats"], rngs=rngs
        )
        total = -jax.nn.log_softmax(logits)[jnp.arange(4), labels[: len(images)]].mean()
        if of_statistics:
            total += sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(updated))
        return total

    return loss


def hessian_vector(loss):
    return lambda w, x, v: jax.grad(lambda w: jnp.vdot(jax.grad(loss)(w, x), v))(w)


def gradient_penalty(loss):
    return lambda w, x, v: jax.grad(lambda w: jnp.square(jax.grad(loss, argnums=1)(w, x)).sum())(w)


def maml(loss):
    return lambda w, x, v: jax.grad(lambda w: loss(w - 0.1 * jax.grad(loss)(w, x), x[::-1]))(w)


def first_order(loss):
    return lambda w, x, v: jax.grad(loss)(w, x)


CASES = {
    "train": ({"train": True}, first_order),
    "eval": ({"train": False}, first_order),
    "groups": ({"train": True, "group": 2, "of_statistics": True}, first_order),
    "hessian": ({"train": True, "of_statistics": True}, hessian_vector),
    "hessian of groups": ({"train": True, "group": 2, "of_statistics": True}, hessian_vector),
    "hessian in eval": ({"train": False}, hessian_vector),
    "gradient penalty": ({"train": True}, gradient_penalty),
    "maml": ({"train": True}, maml),
}


@pytest.mark.parametrize("case", CASES)
def test_all_sets_have_the_same_derivatives(case):
    flat, _, _, images, _ = inputs()
    vector = jax.random.normal(jax.random.key(5), flat.shape)
    settings, derivative = CASES[case]
    plain, *others = (
        jax.jit(derivative(make_loss(name, **settings)))(flat, images, vector)
        for name in operations.SETS
    )
    assert np.abs(plain).max() > 0
    for other in others:
        assert np.abs(other - plain).max() <= 1e-4 * np.abs(plain).max()


def test_blocks_of_all_kinds_have_the_same_gradients():
    rows = (Stage(1, 4, 2), Stage(2, 4, 2, kernel=5, expand=2))
    model = tiny("plain", rows)
    variables = models.init_variables(model, 12, jax.random.key(0))
    variables = jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), variables
    )
    images = jax.random.normal(jax.random.key(1), (4, 12, 12, 3))

    def loss(params, model):
        (logits, _), updated = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"stochastic_depth": jax.random.key(0)},
        )
        return jnp.square(logits).sum(), updated

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    plain, *others = (
        ravel_pytree(gradient(variables["params"], tiny(name, rows)))[0] for name in operations.SETS
    )
    for other in others:
        assert np.abs(other - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("name", operations.SETS)
def test_a_hessian_vector_product_equals_finite_differences(name):
    flat, _, _, images, _ = inputs()
    vector = jax.random.normal(jax.random.key(5), flat.shape)
    vector /= jnp.linalg.norm(vector)
    product = jax.jit(hessian_vector(make_loss(name, train=True)))(flat, images, vector)
    step = 1e-2
    gradient = jax.jit(jax.grad(make_loss("plain", train=True)))
    ahead, behind = (gradient(flat + sign * step * vector, images) for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    assert np.abs(product - difference).max() <= 5e-3 * np.abs(difference).max()


@pytest.mark.parametrize("name", ["plain", "fused"])
def test_forward_mode(name):
    flat, _, _, images, _ = inputs()
    loss = make_loss(name, train=True)
    vector = jax.random.normal(jax.random.key(5), flat.shape)
    tangent = jax.jit(lambda w, v: jax.jvp(lambda w: loss(w, images), (w,), (v,))[1])(flat, vector)
    gradient = jax.jit(jax.grad(loss))(flat, images)
    np.testing.assert_allclose(tangent, jnp.vdot(gradient, vector), rtol=1e-4)
    over = jax.jit(lambda w, v: jax.jvp(lambda w: jax.grad(loss)(w, images), (w,), (v,))[1])
    product = jax.jit(hessian_vector(loss))(flat, images, vector)
    assert np.abs(over(flat, vector) - product).max() <= 1e-4 * np.abs(product).max()


def test_gradients_by_example():
    flat, _, _, images, _ = inputs()
    plain, *others = (
        jax.jit(jax.vmap(jax.grad(make_loss(name, train=False)), (None, 0)))(flat, images[:, None])
        for name in operations.SETS
    )
    for other in others:
        assert np.abs(other - plain).max() <= 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize("name", operations.SETS)
@pytest.mark.parametrize("check", [True, False])
def test_shared_statistics_in_shard_map(name, check):
    # check_vma is the default: gradients of what is whole on every device come summed over devices.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    flat, unravel, batch_stats, images, _ = inputs()
    model, over = tiny(name, batch_norm_axis="data"), PartitionSpec("data")
    whole = tiny("plain")

    def total(model, flat, images):
        variables = {"params": unravel(flat), "batch_stats": batch_stats}
        (logits, _), updated = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"stochastic_depth": jax.random.key(0)},
        )
        return jnp.square(logits).sum(), updated["batch_stats"]

    def on_device(flat, images):
        gradient, updated = jax.grad(functools.partial(total, model), has_aux=True)(flat, images)
        return (gradient if check else jax.lax.psum(gradient, "data")), updated

    sharded = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), over),
        out_specs=PartitionSpec(),
        check_vma=check,
    )
    found = jax.jit(sharded)(flat, images)
    expected = jax.jit(jax.grad(functools.partial(total, whole), has_aux=True))(flat, images)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(ours - right).max() <= 1e-4 * max(np.abs(right).max(), 1e-3)


@pytest.mark.parametrize("name", operations.SETS)
def test_nothing_is_promoted_silently_and_an_empty_batch_is_no_error(name):
    flat, unravel, batch_stats, images, _ = inputs()
    variables = {"params": unravel(flat), "batch_stats": batch_stats}
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for train in (True, False):
            jax.eval_shape(jax.grad(make_loss(name, train)), flat, images)
    logits, _ = jax.jit(functools.partial(tiny(name).apply, train=False))(variables, images[:0])
    assert logits.shape == (0, 3)


@pytest.mark.parametrize("name", operations.SETS)
def test_a_model_is_copied_and_pickled(name):
    model = tiny(name)
    assert copy.deepcopy(model) == model
    assert cloudpickle.loads(cloudpickle.dumps(model)) == model


@pytest.mark.parametrize("name", operations.SETS)
def test_a_symbolic_batch(name):
    flat, unravel, batch_stats, images, _ = inputs()
    variables = {"params": unravel(flat), "batch_stats": batch_stats}
    apply = functools.partial(tiny(name).apply, train=False)
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.float32)
    exported = jax.export.export(jax.jit(apply))(variables, shape)
    logits, _ = exported.call(variables, images[:2])
    np.testing.assert_allclose(logits, apply(variables, images[:2])[0], rtol=1e-4, atol=1e-5)


def test_integers_are_refused_by_the_network():
    _, _, _, images, _ = inputs()
    with pytest.raises(ValueError, match="normalised images in floats, not uint8"):
        tiny("plain").apply({}, images.astype(jnp.uint8), train=False)
