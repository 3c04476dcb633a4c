"""Fused blocks against the same written out, and what a model's padding reaches."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_for
from jax import lax

from effnet_jax import models
from effnet_jax.models import init_variables, layers, operations
from effnet_jax.models.mbconv import FusedMBConv
from effnet_jax.models.network import BlockModule, LayerFactories

FACTORIES = LayerFactories(
    conv=layers.Conv,
    depthwise=layers.DepthwiseConv,
    norm=functools.partial(
        layers.BatchNorm, operations.plain_batch_norm, train=False, momentum=0.9, epsilon=1e-3
    ),
    act=jax.nn.relu,
)


@pytest.mark.parametrize(
    ("expanded", "stride", "outputs", "skip"),
    [(4, 1, 4, True), (4, 2, 6, True), (16, 1, 4, True), (16, 1, 4, False), (16, 2, 4, True)],
)
def test_a_fused_block_is_its_layers_in_order(expanded, stride, outputs, skip):
    # google/automl efficientnetv2/effnetv2_model.py, FusedMBConvBlock.call: the activation follows
    # the only convolution of a block without expansion, and comes before the skip.
    rng = np.random.default_rng(0)
    block = FusedMBConv(
        name="stage1/block1",
        stride=stride,
        inputs=4,
        outputs=outputs,
        survival=0.8,
        skip=skip,
        kernel=3,
        expanded=expanded,
    )
    module = BlockModule(FACTORIES, block, name="block1")
    x = rng.normal(size=(2, 5, 5, 4)).astype("f")
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype("f"), shapes)
    params, stats = variables["params"], variables["batch_stats"]

    def conv_norm(name, x, stride):
        numbers = ("NHWC", "HWIO", "NHWC")
        kernel, norm, stat = params[name]["kernel"], params[f"{name}_norm"], stats[f"{name}_norm"]
        y = lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=numbers)
        y = (y - stat["mean"]) / np.sqrt(stat["var"] + 1e-3)
        return y * norm["scale"] + norm["bias"]

    if expanded == 4:
        assert params.keys() == {"project", "project_norm"}
        expected = np.maximum(conv_norm("project", x, stride), 0)
    else:
        assert params["project"]["kernel"].shape == (1, 1, expanded, outputs)
        expected = np.maximum(conv_norm("expand", x, stride), 0)
        expected = conv_norm("project", expected, 1)
    if skip and stride == 1 and outputs == 4:
        expected = expected + x
    y = module.apply(variables, x, train=False)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet,w=0.1,d=0.1,r=32", "resnet18,w=0.1,d=0.1,r=32"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_a_model_s_padding_is_every_layer_s(name, padding):
    model = models.build(config_for(name, padding=padding)).clone(operations="plain")
    variables = jax.eval_shape(lambda: init_variables(model, 32, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    text = str(program)
    found = set(re.findall(r"padding=\(\(\d+, \d+\), \(\d+, \d+\)\)", text))
    even = {"padding=((0, 1), (0, 1))", "padding=((1, 2), (1, 2))", "padding=((2, 3), (2, 3))"}
    assert bool(found & even) == (padding == "same"), found
    if name.startswith("resnet"):
        assert ("(0, 0), (0, 1), (0, 1), (0, 0)" in text) == (padding == "same")
        assert ("(0, 0), (1, 1), (1, 1), (0, 0)" in text) == (padding == "symmetric")


def test_padding_by_another_name_is_refused():
    with pytest.raises(ValueError, match=r"config\.model\.padding 'SAME'; did you mean"):
        models.build(config_for("b0", padding="SAME"))


@pytest.mark.parametrize("model", ["efficientnet", "efficientnet_v2", "mobilenet_v2"])
def test_zero_residual_makes_every_block_with_a_skip_an_identity(model):
    network = models.build(config_for(f"{model},w=0.2,d=0.5,r=32", zero_residual=True))
    key = jax.random.key(0)
    shapes = functools.partial(init_variables, network, network.architecture.resolution)
    params = jax.jit(shapes)(key)["params"]
    for block in (block for blocks in network.architecture.stages for block in blocks):
        stage, name = block.name.split("/")
        if "project_norm" in params[stage][name]:
            single = isinstance(block, FusedMBConv) and block.expanded == block.inputs
            scale = params[stage][name]["project_norm"]["scale"]
            assert (scale == (0 if block.has_skip and not single else 1)).all(), block.name
