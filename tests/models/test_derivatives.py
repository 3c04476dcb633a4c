"""Every set of operations has the derivatives of the plain form, of first and second order."""

import copy
import functools

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec

from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.models import fused as fused_block
from effnet_jax.models import operations
from effnet_jax.models.network import Stage, Stem

# Programs here run once: without fusion emitters they compile in a third of the time. JAX 0.12
# has no such option.
OPTIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
SIZE = 8
# In evaluation "fused" has the operations of "plain"; `test_fused_is_plain_in_evaluation`.
IN_EVALUATION = ("plain", "cpu")
RNGS = {"stochastic_depth": jax.random.key(0)}
ROWS = (Stage(2, 4, 1, expand=2),)


@functools.cache
def tiny(name: str, rows=ROWS, **settings):
    """A network of a stem and one MBConv with expansion and gate: second orders compile long."""
    base = models.BASES["efficientnet"]
    values = vars(base) | {"stages": rows, "stem": Stem(4), "head_filters": 0}
    spec = type(base)(**values).architecture(models.scaling.Coefficients(1.0, 1.0, SIZE), 3)
    config = config_lib.get_config("b0").model
    config.num_classes = 3
    model = models.build(config)
    return model.clone(architecture=spec, operations=name, dropout=0.0, **settings)


@functools.cache
def inputs():
    """Weights far from symmetric, as one vector; images; a vector to multiply a Hessian with."""
    keys = jax.random.split(jax.random.key(1), 4)
    variables = jit(lambda: models.init_variables(tiny("plain"), SIZE, keys[0]))()
    flat, unravel = ravel_pytree(variables["params"])
    flat = flat + 0.3 * jax.random.normal(keys[1], flat.shape)
    images = jax.random.normal(keys[2], (4, SIZE, SIZE, 3))
    vector = jax.random.normal(keys[3], flat.shape)
    return flat, unravel, variables["batch_stats"], images, vector / jnp.linalg.norm(vector)


def make_loss(name: str, train: bool, group: int | None = None):
    """`(flat weights, images) -> [loss, a function of the statistics after the batch]`."""
    _, unravel, batch_stats, _, _ = inputs()
    model = tiny(name, batch_norm_group=group)

    def losses(flat, images):
        variables = {"params": unravel(flat), "batch_stats": batch_stats}
        (logits, _), updated = model.apply(
            variables, images, train=train, mutable=["batch_stats"], rngs=RNGS
        )
        loss = -jax.nn.log_softmax(logits)[jnp.arange(len(images)), jnp.arange(len(images)) % 3]
        return jnp.stack(
            [loss.mean(), sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(updated))]
        )

    return losses


def total(losses):
    return lambda flat, images: losses(flat, images).sum()


@functools.cache
def second_order(name: str, train: bool, group: int | None = None):
    """Derivatives of a network, by name; in one program, for they share most of it."""
    losses = make_loss(name, train, group)
    loss = total(losses)

    def scalars(flat, images, vector):
        of_weights, of_images = jax.grad(loss, argnums=(0, 1))(flat, images)
        values = {
            "hessian-vector product": jnp.vdot(of_weights, vector),
            "gradient penalty": jnp.square(of_images).sum(),
        }
        if train and group is None:
            values["MAML step"] = losses(flat - 0.1 * of_weights, images[::-1])[0]
        return values, {"gradient": of_weights, "gradient of images": of_images}

    second, first = jit(jax.jacrev(scalars, has_aux=True))(*inputs()[::3], inputs()[4])
    return jax.device_get(first | second)


def assert_same(ours, right, bound=1e-4):
    for key, expected in right.items():
        assert np.abs(expected).max() > 0, key
        assert np.abs(ours[key] - expected).max() <= bound * np.abs(expected).max(), key


@pytest.mark.parametrize("name", ["fused", "cpu"])
@pytest.mark.parametrize("group", [None, 2])
def test_all_sets_have_the_same_derivatives_in_training(name, group):
    assert_same(second_order(name, True, group), second_order("plain", True, group))


def test_all_sets_have_the_same_derivatives_in_evaluation():
    assert_same(second_order("cpu", False), second_order("plain", False))


def test_fused_is_plain_in_evaluation():
    assert operations.SETS["fused"] == operations.SETS["plain"]
    _, unravel, batch_stats, images, _ = inputs()
    variables = {"params": unravel(inputs()[0]), "batch_stats": batch_stats}
    plain, fused = (
        str(jax.make_jaxpr(functools.partial(tiny(name).apply, train=False))(variables, images))
        for name in ("plain", "fused")
    )
    assert plain == fused


def test_blocks_of_all_kinds_have_the_same_gradients(monkeypatch):
    rows = (Stage(1, 4, 1), Stage(2, 4, 2, kernel=5, expand=2))
    monkeypatch.setattr(fused_block, "STRIP_BYTES", 1)  # As many strips as there can be.
    model = tiny("plain", rows)

    @jit
    def start():
        variables = models.init_variables(model, 10, jax.random.key(0))
        return jax.tree.map(
            lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), variables
        )

    variables, images = start(), jax.random.normal(jax.random.key(1), (4, 10, 10, 3))

    def losses(params, model):
        (logits, _), updated = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs=RNGS,
        )
        of_statistics = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(updated))
        return jnp.stack([jnp.square(logits).sum(), of_statistics])

    @functools.partial(jit, static_argnums=1)
    def gradient(params, model):
        return jax.vmap(lambda tree: ravel_pytree(tree)[0])(jax.jacrev(losses)(params, model))

    plain, *others = (gradient(variables["params"], tiny(name, rows)) for name in operations.SETS)
    for other in others:
        for ours, right in zip(other, plain, strict=True):
            assert np.abs(ours - right).max() <= 1e-5 * np.abs(right).max()


def test_a_hessian_vector_product_equals_finite_differences():
    flat, _, _, images, vector = inputs()
    gradient = jit(jax.grad(total(make_loss("plain", True))))
    step = 1e-2
    ahead, behind = (gradient(flat + sign * step * vector, images) for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    for name in operations.SETS:
        product = second_order(name, True)["hessian-vector product"]
        assert np.abs(product - difference).max() <= 5e-3 * np.abs(difference).max(), name


@pytest.mark.parametrize("name", ["plain", "fused"])
def test_forward_mode(name):
    flat, _, _, images, vector = inputs()
    both = jax.value_and_grad(total(make_loss(name, True)))
    forward = jit(lambda w, v: jax.jvp(lambda w: both(w, images), (w,), (v,))[1])
    tangent, product = forward(flat, vector)
    reverse = second_order(name, True)
    np.testing.assert_allclose(tangent, np.vdot(reverse["gradient"], vector), rtol=1e-4)
    assert_same(
        {"hessian-vector product": product},
        {"hessian-vector product": reverse["hessian-vector product"]},
    )


@pytest.mark.parametrize("train", [True, False])
def test_the_set_for_cpus_refuses_forward_mode(train):
    flat, _, _, images, vector = inputs()
    loss = total(make_loss("cpu", train))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda w: loss(w, images), (flat,), (vector,))


def test_gradients_by_example():
    flat, _, _, images, _ = inputs()
    plain, *others = (
        jit(jax.vmap(jax.grad(total(make_loss(name, False))), (None, 0)))(flat, images[:, None])
        for name in IN_EVALUATION
    )
    for other in others:
        assert np.abs(other - plain).max() <= 1e-4 * np.abs(plain).max()


def gradient_and_statistics(model, flat, images):
    """Of the sum over examples, so that devices' gradients add up."""
    _, unravel, batch_stats, _, _ = inputs()

    def loss(flat):
        variables = {"params": unravel(flat), "batch_stats": batch_stats}
        (logits, _), updated = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=RNGS
        )
        return jnp.square(logits).sum(), updated["batch_stats"]

    return jax.grad(loss, has_aux=True)(flat)


@functools.cache
def on_one_device():
    flat, _, _, images, _ = inputs()
    return jit(functools.partial(gradient_and_statistics, tiny("plain")))(flat, images)


@pytest.mark.parametrize("name", operations.SETS)
@pytest.mark.parametrize("check", [True, False])
def test_shared_statistics_in_shard_map(name, check):
    # check_vma is the default: gradients of what is whole on every device come summed over devices.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    flat, _, _, images, _ = inputs()
    model, over = tiny(name, batch_norm_axis="data"), PartitionSpec("data")

    def on_device(flat, images):
        gradient, updated = gradient_and_statistics(model, flat, images)
        return (gradient if check else jax.lax.psum(gradient, "data")), updated

    sharded = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), over),
        out_specs=PartitionSpec(),
        check_vma=check,
    )
    found, expected = jit(sharded)(flat, images), on_one_device()
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(ours - right).max() <= 1e-4 * max(np.abs(right).max(), 1e-3)


@pytest.mark.parametrize("name", operations.SETS)
def test_nothing_is_promoted_silently(name):
    flat, _, _, images, _ = inputs()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for train in (True, False):
            jax.eval_shape(jax.grad(total(make_loss(name, train))), flat, images)


@pytest.mark.parametrize("name", operations.SETS)
def test_an_empty_batch_has_no_logits_and_leaves_the_statistics(name):
    flat, unravel, batch_stats, images, _ = inputs()

    @functools.partial(jit, static_argnums=1)
    def run(flat, train):
        variables = {"params": unravel(flat), "batch_stats": batch_stats}
        return tiny(name).apply(
            variables, images[:0], train=train, mutable=["batch_stats"], rngs=RNGS
        )

    for train in (True, False) if name != "fused" else (True,):
        (logits, _), updated = run(flat, train)
        assert logits.shape == (0, 3)
        jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], batch_stats)


@pytest.mark.parametrize("name", operations.SETS)
def test_a_model_is_copied_and_pickled(name):
    model = tiny(name)
    assert copy.deepcopy(model) == model
    assert cloudpickle.loads(cloudpickle.dumps(model)) == model


@pytest.mark.parametrize("name", IN_EVALUATION)
@pytest.mark.parametrize("sizes", ["batch, 8, 8, 3", "batch, height, width, 3"])
def test_symbolic_sizes(name, sizes):
    flat, unravel, batch_stats, images, _ = inputs()
    variables = {"params": unravel(flat), "batch_stats": batch_stats}
    apply = jit(functools.partial(tiny(name).apply, train=False))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sizes), jnp.float32)
    logits, _ = jax.export.export(apply)(variables, shape).call(variables, images[:2])
    np.testing.assert_allclose(logits, apply(variables, images[:2])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", operations.SETS)
def test_a_symbolic_batch_in_training(name):
    flat, _, _, images, _ = inputs()
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 8, 8, 3"), jnp.float32)
    gradient = jit(functools.partial(gradient_and_statistics, tiny(name)))
    exported = jax.export.export(gradient)(flat, shape)
    if name == "fused":  # The one whose program depends on the batch.
        found = exported.call(flat, images)
        for ours, right in zip(
            jax.tree.leaves(found), jax.tree.leaves(on_one_device()), strict=True
        ):
            assert np.abs(ours - right).max() <= 1e-4 * max(np.abs(right).max(), 1e-3)


def test_the_line_of_the_docs_that_compiles_a_model_runs():
    flat, unravel, batch_stats, images, _ = inputs()
    variables = {"params": unravel(flat), "batch_stats": batch_stats}
    text = (ROOT / "docs" / "weights.md").read_text()
    (line,) = (line for line in text.splitlines() if "jax.jit(" in line)
    names = {"jax": jax, "model": tiny("cpu")}
    exec(line, names)
    assert names["apply"](variables, images, train=False)[0].shape == (4, 3)


def test_integers_are_refused_by_the_network():
    images = inputs()[3]
    with pytest.raises(ValueError, match="images must be normalised floats, not uint8"):
        tiny("plain").apply({}, images.astype(jnp.uint8), train=False)
