import dataclasses
import json
import re
import subprocess
import sys
import types
import zipfile

import h5py
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import effnet_jax
from effnet_jax import config as default
from effnet_jax import weights
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.weights import timm, torchvision
from effnet_jax.weights.origins import NAMES
from tests import golden_checkpoint
from tests.weights.stand_ins import TINY, flat, in_format, random_weights, table, write_pth

GIVEN = {"timm": "timm_tf"}  # Names that leave the origin open.


# A config.json of timm.
TIMM = {
    "architecture": "tf_efficientnetv2_b0",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "in1k",
        "input_size": [3, 192, 192],
        "test_input_size": [3, 208, 208],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}

OWN_NAMES = TIMM["pretrained_cfg"] | {"label_names": ["cat", "dog", "cow"]}


def write(path, arrays, metadata=None):
    """A .safetensors file of another program's."""
    safetensors.numpy.save_file(arrays, path, metadata)
    return path


def check_equal(found, wanted):
    found, wanted = flat(found), flat(wanted)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes() and found[name].shape == array.shape, name


# In b3 the reference's rule of rounding makes a difference: reference/README.md, trap 5.
@pytest.mark.parametrize("model", [TINY, "b3", "lite0", "edgetpu-s", "v2-s"])
def test_there_and_back_in_timms_names_is_bit_equal(tmp_path, model):
    wanted = random_weights(model)
    first, theirs, last = (tmp_path / f"{name}.safetensors" for name in ("first", "theirs", "last"))
    weights.save(first, wanted)
    weights.save(theirs, weights.load(first), names="timm")
    with safetensors.safe_open(theirs, "numpy") as file:
        stem = file.get_tensor("conv_stem.weight")
    kernel = flat(wanted)["params/stem/conv/kernel"]
    np.testing.assert_array_equal(stem, kernel.transpose(3, 2, 0, 1))
    found = weights.load(theirs)
    check_equal(found, wanted)
    weights.save(last, found)
    assert first.read_bytes() == last.read_bytes()


def test_what_belongs_to_the_weights_is_in_the_file(tmp_path):
    wanted = random_weights()
    wanted.config.batch_norm_epsilon, wanted.config.padding = 1e-5, "symmetric"
    wanted.preprocess["crop_rule"] = "whole"
    path = tmp_path / "folder" / "w.safetensors"
    weights.save(path, wanted)
    found = weights.load(path)
    assert found.config.to_dict() == wanted.config.to_dict()
    assert (found.preprocess, found.classes, found.origin) == (
        wanted.preprocess,
        wanted.classes,
        "ours",
    )
    with safetensors.safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()["effnet_jax"])
    assert content["format_version"] == 1
    assert content["preprocess"]["mean"] == wanted.preprocess["mean"]
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_a_file_of_a_newer_release_says_so(tmp_path):
    path = write(
        tmp_path / "w.safetensors",
        in_format("ours", TINY),
        {"effnet_jax": json.dumps({"format_version": 2})},
    )
    with pytest.raises(UserError, match=r"format version 2, .* update"):
        weights.load(path)


def test_metadata_that_was_edited_is_named(tmp_path):
    weights.save(path := tmp_path / "w.safetensors", random_weights())
    with safetensors.safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()["effnet_jax"])
    for key, value in (("mean", None), ("crop", 0.9)):
        changed = {k: v for k, v in content["preprocess"].items() if k != key}
        changed |= {} if value is None else {key: value}
        metadata = {"effnet_jax": json.dumps(content | {"preprocess": changed})}
        write(path, in_format("ours", TINY), metadata)
        with pytest.raises(UserError, match=f"missing or unknown: {key}"):
            weights.load(path)


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_text("precious")
    with pytest.raises(UserError, match="already exists; --overwrite"):
        weights.save(path, random_weights())
    assert path.read_text() == "precious"
    mode = path.stat().st_mode
    weights.save(path, random_weights(), overwrite=True)
    check_equal(weights.load(path), random_weights())
    assert path.stat().st_mode == mode  # Others may read it, as any file that is written.
    with pytest.raises(UserError, match=r"can't write .*safetensors/w\.safetensors"):
        weights.save(path / "w.safetensors", random_weights())


@pytest.mark.parametrize("key", ["timm", "torchvision", "lukemelas", "tf", "keras"])
def test_every_format_gives_the_same_arrays_and_its_shapes_tell_the_model(tmp_path, key):
    arrays = in_format(key, "b0")
    if key in ("timm", "torchvision", "lukemelas"):
        arrays[next(iter(arrays)).replace("weight", "num_batches_tracked")] = np.int64(3)
        arrays = {f"module.{name}": array for name, array in arrays.items()}
        write_pth(path := tmp_path / "w.pth", {n: a for n, a in arrays.items() if a.ndim})
    elif key == "tf":
        slots = {f"{name}/RMSProp": array for name, array in arrays.items()}
        averages = {f"{name}/ExponentialMovingAverage": a for name, a in arrays.items()}
        raw = {name: array + 1 for name, array in arrays.items()}
        arrays = {f"efficientnet-b0/{n}": a for n, a in {**slots, **averages, **raw}.items()}
        np.savez(path := tmp_path / "w.npz", global_step=np.int64(1), **arrays)
    else:
        arrays["normalization/count"] = np.int64(0)
        np.savez(path := tmp_path / "w.npz", **arrays)
    found = weights.load(path, origin=GIVEN.get(key))
    check_equal(found, random_weights("b0"))
    assert (found.config.base, found.config.width, found.config.depth) == ("efficientnet", 1, 1)
    assert found.origin == GIVEN.get(key, key) and found.classes[:2] == ("class 0", "class 1")
    if key == "tf":
        kernel = flat(weights.load(path, weights="raw"))["params/stem/conv/kernel"]
        np.testing.assert_array_equal(
            kernel, flat(random_weights("b0"))["params/stem/conv/kernel"] + 1
        )


def test_variants_are_told_by_their_shapes():
    names = NAMES["timm"]
    for model in ("b0", "b8", "lite3", "edgetpu-m", "v2-b3", "v2-xl"):
        found = {
            names.of(array): np.broadcast_to(np.float32(0), names.shape(array))
            for array in table(model, 7)
        }
        assert weights._match(None, None, names, found, "file")[0] == model


def test_our_names_without_our_metadata_leave_the_preprocessing_open(tmp_path):
    path = write(tmp_path / "w.safetensors", in_format("ours", "b0"))
    with pytest.raises(UserError, match=r"is unknown; --model=b0 uses"):
        weights.load(path)
    assert weights.load(path, "b0").preprocess["crop_rule"] == "padding"


@pytest.mark.parametrize("key", ["ours", "torchvision"])
def test_a_missing_left_over_or_misshapen_array_stops_the_load_and_is_named(tmp_path, key):
    arrays = in_format(key, "b0")
    name = {
        "ours": "params/stage3/block1/project/kernel",
        "torchvision": "features.3.0.block.3.0.weight",
    }[key]
    gone = arrays.pop(name)
    path = write(tmp_path / "w.safetensors", arrays)
    with pytest.raises(UserError, match=rf"closest is b0:\n  missing: {re.escape(name)}$"):
        weights.load(path)
    write(path, {**arrays, name: gone[..., :0]})
    with pytest.raises(UserError, match=rf"of another shape: {re.escape(name)} \(is .*x0, should"):
        weights.load(path)
    write(path, {**arrays, name: gone, f"{name}_2": gone})
    with pytest.raises(UserError, match=rf"left over: {re.escape(name)}_2$"):
        weights.load(path)
    write(path, {**arrays, name: gone})
    with pytest.raises(UserError, match=r"doesn't fit b1:\n  missing: ") as raised:
        weights.load(path, model="b1")
    assert len(str(raised.value).splitlines()) < 30
    with pytest.raises(UserError, match="unknown model 'b11'"):
        weights.load(path, model="b11")


def test_a_file_of_ours_has_to_fit_its_metadata_and_the_model_that_is_asked_for(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, random_weights())
    with pytest.raises(UserError, match="doesn't fit b0"):
        weights.load(path, model="b0")
    with pytest.raises(UserError, match="its origin is ours, not timm"):
        weights.load(path, origin="timm")
    with safetensors.safe_open(path, "numpy") as file:
        arrays, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    del arrays["batch_stats/head/norm/var"]
    write(path, arrays, metadata)
    with pytest.raises(UserError, match=r"in its metadata:\n  missing: batch_stats/head/norm/var"):
        weights.load(path)


def test_names_that_two_origins_share_are_not_guessed_at(tmp_path):
    path = write(tmp_path / "w.safetensors", in_format("timm", "b0"))
    with pytest.raises(UserError, match=r"origin timm_tf for TensorFlow's .* or timm for"):
        weights.load(path)
    with pytest.raises(UserError, match="names of timm, but origin keras has the names of keras"):
        weights.load(path, origin="keras")
    own, ported = weights.load(path, origin="timm"), weights.load(path, origin="timm_tf")
    assert (own.config.padding, own.config.batch_norm_epsilon) == ("symmetric", 1e-5)
    assert (ported.config.padding, ported.config.batch_norm_epsilon) == ("same", 1e-3)


def test_timms_config_beside_the_file_tells(tmp_path):
    arrays = in_format("timm", "v2-b0", 1000)
    path = write(tmp_path / "model.safetensors", arrays)
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    for source in (path, tmp_path):  # A folder as of the Hub.
        found = weights.load(source)
        assert found.origin == "timm_tf" and found.classes == imagenet.class_names()
        assert found.config.resolution == 208
        assert found.preprocess == {
            "resolution": 208,
            "crop_rule": "resize",
            "crop_padding": 32,
            "crop_fraction": 0.8,
            "interpolation": "bicubic_pillow",
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": [3, 224, 300], "test_input_size": None}, "224 x 300 pixels are not square"),
        ({"mean": 0.5}, "not iterable"),
        ({"input_size": None, "test_input_size": None}, "config.json doesn't state"),
    ],
)
def test_a_config_that_can_not_be_used_is_named(tmp_path, change, message):
    """Also with an origin, whose own preprocessing was taken instead."""
    write(tmp_path / "model.safetensors", in_format("timm", "v2-b0", 3))
    config, settings = tmp_path / "config.json", TIMM["pretrained_cfg"] | change
    config.write_text(json.dumps({**TIMM, "num_classes": 3, "pretrained_cfg": settings}))
    with pytest.raises(UserError, match=message):
        weights.load(tmp_path, origin="timm_tf")
    del settings["crop_pct"], settings["test_input_size"]
    settings["input_size"] = [3, 224, 224]
    config.write_text(json.dumps({**TIMM, "pretrained_cfg": settings}))
    with pytest.raises(UserError, match=r"config\.json doesn't state .*: no 'crop_pct'\. Correct"):
        weights.load(tmp_path, origin="timm_tf")
    config.write_text(json.dumps(TIMM)[:-9])
    with pytest.raises(UserError, match=r"can't read .*config\.json, which may state the prepro"):
        weights.load(tmp_path, origin="timm_tf")
    config.write_text('{"model_type": "bert"}')  # Another program's.
    assert weights.load(tmp_path, origin="timm_tf").preprocess["resolution"] == 224


@pytest.mark.parametrize(
    ("tag", "outputs", "classes"),
    [
        ("ns_jft_in1k_475", 1000, "imagenet"),
        ("in21k_ft_in1k", 1000, "imagenet"),
        ("in21k", 21843, "imagenet21k"),
        ("in12k", 11821, None),
        ("ns_jft_in1k_475", 3, None),
    ],
)
def test_classes_are_those_of_the_tag(tag, outputs, classes):
    assert timm._classes({"num_classes": outputs}, tag) == classes


@pytest.mark.parametrize(
    ("stated", "classes"),
    [
        ({"label_names": ["cat", "dog", "cow"]}, ("cat", "dog", "cow")),
        ({"label_names": {"2": "cow", "0": "cat"}}, ("cat", "class 1", "cow")),
        ({"pretrained_cfg": OWN_NAMES}, ("cat", "dog", "cow")),  # As timm's own upload has them.
        ({}, ("class 0", "class 1", "class 2")),  # Not ImageNet's, which the tag still names.
    ],
)
def test_a_fine_tuned_repository_has_classes_of_its_own(tmp_path, stated, classes):
    write(tmp_path / "model.safetensors", in_format("timm", "v2-b0", 3))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TIMM, "num_classes": 3, **stated}))
    found = weights.load(tmp_path)
    assert (found.classes, found.origin, found.config.num_classes) == (classes, "timm_tf", 3)
    config.write_text(json.dumps({**TIMM, "num_classes": 3, "label_names": ["cat", "dog"]}))
    with pytest.raises(UserError, match="3 outputs, but 2 classes"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "model"),
    [
        ("tf_efficientnet_b0", "b0"),
        ("efficientnet_lite4", "lite4"),
        ("tf_efficientnet_es.in1k", "edgetpu-s"),
        ("tf_efficientnetv2_xl", "v2-xl"),
        ("tf_efficientnet_l2", "l2"),
        ("efficientnetv2_rw_s", None),
        ("resnet50", None),
    ],
)
def test_timms_models_have_our_names(architecture, model):
    assert timm.model_of(architecture) == model


# timm/models/efficientnet.py at aa4b585, `default_cfgs`.
@pytest.mark.parametrize(
    ("name", "model", "size", "crop", "rule", "normalization"),
    [
        ("tf_efficientnet_l2.ns_jft_in1k_475", "l2", 475, 0.936, "resize", "imagenet"),
        ("tf_efficientnet_l2.ns_jft_in1k", "l2", None, 0.96, "resize", "imagenet"),
        ("tf_efficientnetv2_b3.in21k_ft_in1k", "v2-b3", None, 0.9, "squash", "inception"),
        ("tf_efficientnetv2_b3.in1k", "v2-b3", None, 0.904, "resize", "imagenet"),
        ("tf_efficientnetv2_m.in1k", "v2-m", None, 1.0, "whole", "inception"),
        ("tf_efficientnet_b0.ap_in1k", "b0", None, 0.875, "resize", "inception"),
    ],
)
def test_timms_names_have_their_tag_s_preprocessing(name, model, size, crop, rule, normalization):
    stated = timm.by_name(name)
    assert (stated["model"], stated["origin"]) == (model, "timm_tf")
    found, (mean, std) = stated["preprocess"], default.NORMALIZATIONS[normalization]
    assert (found.get("resolution"), found["crop_fraction"], found["crop_rule"]) == (
        size,
        crop,
        rule,
    )
    assert (found["mean"], found["std"]) == (mean, std)


def test_weights_are_loaded_by_timm_s_name(tmp_path):
    path = write(tmp_path / "w.safetensors", in_format("timm", "b0"))
    found = weights.load(path, "tf_efficientnet_b0.ap_in1k")
    assert (found.origin, found.preprocess["mean"]) == ("timm_tf", [0.5] * 3)
    assert weights.load(path, "tf_efficientnet_b0").preprocess["mean"][0] == 0.485
    with pytest.raises(
        UserError, match="tf_efficientnet_b0 is a model of origin timm_tf, not timm"
    ):
        weights.load(path, "tf_efficientnet_b0", "timm")


# As timm, torchvision and the reference state them; reference/numerical_diffs.csv.
@pytest.mark.parametrize(
    ("key", "origin", "model", "expected"),
    [
        ("tf", "tf", "b1", (240, "padding", "bicubic_tf1", "imagenet")),
        ("tf", "tf", "lite0", (224, "padding", "bilinear_tf1", "127")),
        ("tf", "tf", "v2-b0", (224, "padding", "bicubic_tf1", "imagenet")),
        ("tf", "tf", "v2-s", (384, "whole", "bilinear", "128")),
        ("timm", "timm_tf", "lite4", (380, "resize", "bilinear_pillow", "inception")),
        ("timm", "timm_tf", "b0", (224, "resize", "bicubic_pillow", "imagenet")),
        ("timm", "timm", "b2", (288, "resize", "bicubic_pillow", "imagenet")),
        ("torchvision", "torchvision", "b3", (300, "resize", "bicubic_pillow", "imagenet")),
    ],
)
def test_preprocessing_is_that_of_origin_and_model(tmp_path, key, origin, model, expected):
    path = tmp_path / "w.npz"
    arrays = in_format(key, model)
    if key == "tf":
        arrays = {f"net/{name}/ExponentialMovingAverage": array for name, array in arrays.items()}
    np.savez(path, **arrays)
    found = weights.load(path, model, origin)
    resolution, rule, interpolation, normalization = expected
    mean, std = default.NORMALIZATIONS[normalization]
    assert found.preprocess | {"crop_fraction": 0} == {
        "resolution": resolution,
        "crop_rule": rule,
        "crop_padding": 32,
        "crop_fraction": 0,
        "interpolation": interpolation,
        "mean": list(mean),
        "std": list(std),
    }
    assert found.config.resolution == resolution


def test_preprocessing_may_be_overridden(tmp_path):
    np.savez(path := tmp_path / "w.npz", **in_format("lukemelas", "b0"))
    found = weights.load(path, "b0", normalization="inception", resolution=200)
    assert (found.preprocess["mean"], found.preprocess["resolution"]) == ([0.5] * 3, 200)
    assert found.config.resolution == 200
    with pytest.raises(UserError, match="unknown normalization 'adv'"):
        weights.load(path, normalization="adv")


def test_the_crops_of_torchvision_and_timm_are_what_they_state():
    assert torchvision.RECIPES["b0"]["crop_fraction"] == 224 / 256
    assert timm.TENSORFLOW["b7"]["crop_fraction"] == 0.949
    assert set(timm.TENSORFLOW) == set(timm.OWN) == set(VARIANTS)


def keras_file(path, arrays, group=""):
    """In a group for each layer, as Keras writes them."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            layer, _, leaf = name.partition("/")
            file[f"{group}{layer}/{layer}/{leaf}:0"] = array
        file["optimizer_weights/iteration:0"] = 3
    return path


def test_keras_normalisation_is_folded_into_the_preprocessing(tmp_path):
    mean, std = (np.float32(values) for values in default.NORMALIZATIONS["imagenet"])
    arrays = in_format("keras", "b0")
    # Those for ImageNet: after dividing by the root of std, the model does it once more.
    layer = {"normalization/mean": mean, "normalization/variance": std}
    path = keras_file(tmp_path / "w.h5", {**arrays, **layer, "normalization/count": 0})
    found = weights.load(path)
    check_equal(found, random_weights("b0"))
    np.testing.assert_allclose(found.preprocess["std"], std, rtol=1e-6)
    np.testing.assert_allclose(found.preprocess["mean"], mean, rtol=1e-6)
    # Of one's own data: a variance.
    layer = {"normalization_2/mean": mean, "normalization_2/variance": np.float32([0.04, 0.09, 1])}
    keras_file(path, {**arrays, **layer}, "model_weights/")
    np.testing.assert_allclose(weights.load(path).preprocess["std"], [0.2, 0.3, 1], rtol=1e-6)
    # V2's models have it as constants.
    v2 = keras_file(tmp_path / "v2.h5", in_format("keras", "v2-b0"))
    assert weights.load(v2).preprocess["std"] == list(default.NORMALIZATIONS["imagenet"][1])


def split(path, arrays, shards=2):
    """A folder with arrays in several files and their index, as Hugging Face's libraries write."""
    path.mkdir()
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    parts = {name: dict([*arrays.items()][n::shards]) for n, name in enumerate(names)}
    for name, part in parts.items():
        write(path / name, part)
    places = {array: name for name, part in parts.items() for array in part}
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards_are_read_by_their_index(tmp_path):
    index = split(tmp_path / "parts", in_format("lukemelas", "lite0"))
    shard = index.with_name("model-00002-of-00002.safetensors")
    for source in (index, index.parent, shard):
        check_equal(weights.load(source), random_weights("lite0"))
    content = json.loads(index.read_text())
    content["weight_map"].pop("_fc.bias")
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"disagree about the arrays _fc\.bias$"):
        weights.load(index)
    shard.unlink()
    with pytest.raises(UserError, match=rf"not next to it: {shard.name}$"):
        weights.load(index)
    index.write_text('["weight_map"]')
    with pytest.raises(UserError, match="is not an index of"):
        weights.load(index)


def test_a_link_without_a_name_has_the_config_next_to_it(tmp_path):
    """As in the Hub's cache, where the content has a digest for its name."""
    blob = write(tmp_path / "4f2c", in_format("timm", "v2-b0", 3))
    (folder := tmp_path / "snapshot").mkdir()
    (folder / "model.safetensors").symlink_to(blob)
    (folder / "config.json").write_text(json.dumps({**TIMM, "num_classes": 3}))
    assert weights.load(folder / "model.safetensors").origin == "timm_tf"


@pytest.mark.parametrize("wrappers", ["_orig_mod.", "module._orig_mod.", "model.net.", "backbone."])
@pytest.mark.parametrize("key", ["timm", "torchvision", "lukemelas"])
def test_what_wraps_a_network_is_no_part_of_its_names(tmp_path, key, wrappers):
    arrays = {f"{wrappers}{name}": array for name, array in in_format(key, "b0").items()}
    names = ("n_averaged", f"{wrappers}bn1.num_batches_tracked")
    counts = dict.fromkeys(names, np.array(3))
    path = write(tmp_path / "w.safetensors", {**arrays, **counts})
    check_equal(weights.load(path, origin=GIVEN.get(key)), random_weights("b0"))
    write(path, {**arrays, "loss.weight": np.zeros(3, np.float32)})
    message = rf"start with '{wrappers.partition('.')[0]}\.', and other names: loss\.weight\. Save"
    if wrappers.count(".") == 1:
        with pytest.raises(UserError, match=message):
            weights.load(path)
    else:
        with pytest.raises(UserError, match="names of no known format"):
            weights.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(np.int8), "_fc.bias is int8; quantised weights can't be read"),
        (lambda a: a * np.nan, "_fc.bias is not finite everywhere"),
        (lambda a: a.astype(np.float64) * 1e39, "_fc.bias is not finite everywhere"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_that_are_no_weights_are_refused(tmp_path, change, message):
    arrays = in_format("lukemelas", "lite0")
    path = write(tmp_path / "w.safetensors", arrays | {"_fc.bias": change(arrays["_fc.bias"])})
    with pytest.raises(UserError, match=message):
        weights.load(path)


def test_variances_below_zero_are_refused(tmp_path):
    arrays = in_format("lukemelas", "lite0")
    path = write(tmp_path / "w.safetensors", arrays)
    arrays["_bn0.running_var"] = -arrays["_bn0.running_var"]
    write(path, arrays)
    with pytest.raises(UserError, match=r"_bn0\.running_var has variances below 0"):
        weights.load(path)


def test_a_download_with_zeros_is_refused(tmp_path):
    """As programs leave it that reserve a file's size first: the network answered at random."""
    arrays = in_format("timm", "b0")
    path = write(tmp_path / "w.safetensors", arrays)
    data = path.read_bytes()
    for length in (2000, len(data) // 2):
        path.write_bytes(data[:-length] + bytes(length))
        with pytest.raises(UserError, match=r"w\.safetensors ends in zeros, like an incomplete"):
            weights.load(path, origin="timm")
    # A part of several that never came, and arrays that no network has.
    path.write_bytes(data[:-1_000_000] + bytes(100_000) + data[-900_000:])
    with pytest.raises(UserError, match=r"conv_head\.weight is 0 over a long part, as in a file"):
        weights.load(path, origin="timm")
    for name in ("bn1.running_var", "conv_stem.weight"):
        np.savez(tmp_path / "w.npz", **arrays | {name: 0 * arrays[name]})
        with pytest.raises(UserError, match=rf"{name} is 0 everywhere, as in a file whose"):
            weights.load(tmp_path / "w.npz", origin="timm")


def test_a_network_without_a_classifier_lacks_it_by_name(tmp_path):
    arrays = in_format("timm", "b0")
    empty = {"classifier.bias": np.zeros(0, np.float32)}
    path = tmp_path / "w.safetensors"
    for found in ({}, empty):
        write(path, {k: v for k, v in arrays.items() if not k.startswith("classifier")} | found)
        with pytest.raises(UserError, match=r"closest is b0:\n  missing: classifier\.weight"):
            weights.load(path, origin="timm")


def test_a_config_of_another_download_states_nothing(tmp_path):
    """Both names are of one network; padding and epsilon were the other's."""
    path = write(tmp_path / "efficientnetv2_b0.in1k.safetensors", in_format("timm", "v2-b0", 1000))
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    with pytest.raises(UserError, match="two kinds of weights share"):
        weights.load(path)
    assert weights.load(path, origin="timm").config.padding == "symmetric"
    own = path.rename(tmp_path / "tf_efficientnetv2_b0.in1k.safetensors")
    assert weights.load(own).preprocess["crop_fraction"] == 0.8


def test_torchvision_s_older_b1_has_its_own_preprocessing(tmp_path):
    arrays = in_format("torchvision", "b1", 1000)  # torchvision/models/efficientnet.py.
    for name, side, interpolation in (
        ("efficientnet_b1-c27df63c.npz", 255, "bilinear_pillow"),
        ("efficientnet_b1_rwightman-bac287d4.npz", 256, "bicubic_pillow"),
    ):
        np.savez(tmp_path / name, **arrays)
        found = weights.load(tmp_path / name)
        assert (found.origin, found.preprocess["interpolation"]) == ("torchvision", interpolation)
        assert Preprocess(**found.preprocess)._shorter_side == side


def test_classes_of_a_file_are_not_put_into_another_order(tmp_path):
    found = weights.load(golden_checkpoint.WORKDIR)
    assert weights.load(golden_checkpoint.WORKDIR, classes=found.classes).classes == found.classes
    with pytest.raises(UserError, match=r"in another order; its outputs are 0, 1, 2 and so on"):
        weights.load(golden_checkpoint.WORKDIR, classes=found.classes[::-1])
    # The tag of timm's config names ImageNet's, which people list by WordNet id or by title.
    write(tmp_path / "model.safetensors", in_format("timm", "v2-b0", 1000))
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    titles = list(imagenet.titles().values())
    assert weights.load(tmp_path, classes=titles).classes[0] == "tench"
    for given in (imagenet.class_names()[::-1], sorted(titles)):
        with pytest.raises(
            UserError, match=r"in another order; its outputs are (n01440764|tench),"
        ):
            weights.load(tmp_path, classes=given)


@pytest.mark.parametrize("source", [None, 3, "https://example.org/b0.pth", "s3://bucket/run"])
def test_what_is_no_source_is_named(source):
    with pytest.raises(UserError, match=r"path or hf://ORG/NAME, not|is a URL; download the file"):
        weights.load(source)


def test_two_networks_in_a_file_are_not_mixed(tmp_path):
    arrays = in_format("keras", "b0")
    twice = {f"{name}/{layer}": a for name in ("student", "teacher") for layer, a in arrays.items()}
    np.savez(path := tmp_path / "w.npz", **twice)
    with pytest.raises(UserError, match="both student/stem_conv/kernel and teacher/stem_conv/kern"):
        weights.load(path)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "run git lfs pull"),
        ("\n<!DOCTYPE html>\n<html><title>Sign in</title>", "a web page"),
        ("<HTML><body>404 Not Found", "a web page"),
    ],
)
def test_what_a_download_left_is_named(tmp_path, start, what):
    (path := tmp_path / "model.safetensors").write_text(start)
    for source in (path, tmp_path):
        with pytest.raises(UserError, match=f"model.safetensors is .*{what}"):
            weights.load(source)


def test_a_keras_archive_is_named(tmp_path):
    with zipfile.ZipFile(path := tmp_path / "model.keras", "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "")
    with pytest.raises(
        UserError, match=r"is a \.keras file\. (?s:.*)load_model.*model\.save\('FILE\.h5'\)"
    ):
        weights.load(path)


@pytest.mark.parametrize("source", ["safetensors", "tf", "run"])
def test_only_a_pytorch_file_has_keys(tmp_path, source):
    path = tmp_path / "w"
    if source == "run":
        path = golden_checkpoint.WORKDIR
    elif source == "tf":
        with open(path, "wb") as file:
            np.savez(file, **in_format("tf", "b0"))
    else:
        write(path, in_format("ours", "b0"))
    with pytest.raises(UserError, match="unknown weights 'student'; did you mean"):
        weights.load(path, "b0", weights="student")


def test_keras_3s_own_form_is_refused(tmp_path):
    with h5py.File(path := tmp_path / "w.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(3)
    with pytest.raises(UserError, match="Keras 3's form"):
        weights.load(path)


@pytest.mark.parametrize("outputs", [1000, 1001])
def test_classes_are_named_and_the_background_is_dropped_or_kept_by_name(tmp_path, outputs):
    arrays = in_format("tf", "lite0", outputs)
    path = tmp_path / "w.npz"
    np.savez(path, **arrays)
    kernel = flat(random_weights("lite0", outputs))["params/classifier/kernel"]

    def load(classes):
        found = weights.load(path, "lite0", classes=classes, weights="raw")
        assert found.config.num_classes == len(found.classes)
        return found.classes, flat(found)["params/classifier/kernel"]

    classes, found = load(None)
    assert len(classes) == outputs and classes[-1] == f"class {outputs - 1}"
    classes, found = load("imagenet")
    assert classes == imagenet.class_names()
    np.testing.assert_array_equal(found, kernel[:, -1000:])
    if outputs == 1001:
        classes, found = load("imagenet_background")
        assert classes[:2] == ("background", imagenet.class_names()[0])
        np.testing.assert_array_equal(found, kernel)
    else:
        with pytest.raises(UserError, match="1000 outputs, but classes='imagenet_background'"):
            load("imagenet_background")
        with pytest.raises(UserError, match="21841 or 21843"):
            load("imagenet21k")


def test_classes_may_be_given(tmp_path):
    np.savez(path := tmp_path / "w.npz", **in_format("ours", TINY, 3))
    for text in ('["cat", "dog", "cow"]', "cat\ndog\ncow\n", "\ufeffcat \r\ndog\ncow\n\n"):
        (tmp_path / "classes").write_text(text)
        found = weights.load(path, TINY, classes=str(tmp_path / "classes"))
        assert found.classes == ("cat", "dog", "cow")
    assert weights.load(path, TINY, classes=["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(UserError, match="3 outputs, but 2 classes"):
        weights.load(path, TINY, classes=["a", "b"])
    (tmp_path / "classes").write_text("cat\n\ndog\n")  # A third is missing.
    with pytest.raises(UserError, match="class 1 of 3 has an empty name"):
        weights.load(path, TINY, classes=str(tmp_path / "classes"))
    (tmp_path / "classes").write_text('{"0": "cat", "1": "dog", "2": "cow"}')
    for given in (str(tmp_path / "classes"), {0: "cat", 1: "dog", 2: "cow"}):
        with pytest.raises(UserError, match="must be a list of names, not dict"):
            weights.load(path, TINY, classes=given)
    with pytest.raises(UserError, match="can't read the names of the classes"):
        weights.load(path, TINY, classes="imagnet")


def test_the_21k_head(tmp_path):
    np.savez(path := tmp_path / "w.npz", **in_format("ours", TINY, 21843))
    assert weights.load(path, TINY, classes="imagenet21k").config.num_classes == 21843


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "h5"])
def test_a_truncated_file_is_damaged(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    if suffix == "h5":
        keras_file(path, {"stem_conv/kernel": np.zeros((3, 3, 3, 32), np.float32)})
    elif suffix == "npz":
        np.savez(path, **{"params/stem/conv/kernel": np.zeros((3, 3, 3, 32))})
    else:
        write(path, {"params/stem/conv/kernel": np.zeros((3, 3, 3, 32))})
    whole = path.read_bytes()
    for length in (12, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            weights.load(path)


def test_what_is_no_file_of_weights_is_told(tmp_path):
    (tmp_path / "notes.pth").write_text("Nothing of the kind.")
    with pytest.raises(UserError, match=r"not a known format of weights.*b'Nothing o'"):
        weights.load(tmp_path / "notes.pth")
    with pytest.raises(UserError, match="no file or folder"):
        weights.load(tmp_path / "missing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights in"):
        weights.load(tmp_path / "empty")
    np.savez(tmp_path / "objects.npz", a=np.array([print], object))
    with pytest.raises(UserError, match="damaged"):
        weights.load(tmp_path / "objects.npz")


def test_half_precision_becomes_float32(tmp_path):
    arrays = {n: a.astype(np.float16) for n, a in in_format("lukemelas", "lite0").items()}
    found = flat(weights.load(write(tmp_path / "w.safetensors", arrays)))
    assert {array.dtype.name for array in found.values()} == {"float32"}


@pytest.fixture
def tensorflow_checkpoint(tmp_path, monkeypatch):
    """Its prefix, and a stand-in for TensorFlow that reads it."""
    arrays = {f"net/{name}": array for name, array in in_format("tf", "b0").items()}
    averages = {f"{name}/ExponentialMovingAverage": array + 1 for name, array in arrays.items()}
    arrays = {**arrays, **averages, "global_step": np.int64(7)}
    reader = types.SimpleNamespace(
        get_variable_to_shape_map=lambda: {name: list(a.shape) for name, a in arrays.items()},
        get_tensor=arrays.get,
    )
    stand_in = types.ModuleType("tensorflow")
    stand_in.train = types.SimpleNamespace(load_checkpoint=lambda prefix: reader)
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    (tmp_path / "model.ckpt.index").touch()
    (tmp_path / "model.ckpt.data-00000-of-00001").touch()
    return tmp_path / "model.ckpt"


def test_averages_of_a_tensorflow_checkpoint_are_taken(tensorflow_checkpoint, monkeypatch):
    raw = random_weights("b0")
    for source in (
        tensorflow_checkpoint,
        f"{tensorflow_checkpoint}.index",
        tensorflow_checkpoint.parent,
    ):
        found = flat(weights.load(source))["params/classifier/bias"]
        np.testing.assert_array_equal(found, flat(raw)["params/classifier/bias"] + 1)
    check_equal(weights.load(tensorflow_checkpoint, weights="raw"), raw)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # As if it weren't installed.
    with pytest.raises(UserError, match="pip install tensorflow"):
        weights.load(tensorflow_checkpoint)


def test_a_checkpoint_without_averages_says_how_to_go_on(tmp_path):
    np.savez(path := tmp_path / "w.npz", **in_format("tf", "b0"))
    with pytest.raises(UserError, match="--weights=raw"):
        weights.load(path)


def test_the_hub_is_asked_for_weights_and_config_alone(tmp_path, monkeypatch):
    write(tmp_path / "model.safetensors", in_format("lukemelas", "lite0"))
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        if repository == "org/gone":
            raise OSError("401 Client Error.\nRepository Not Found")
        return str(tmp_path)

    stand_in = types.ModuleType("huggingface_hub")
    stand_in.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    check_equal(weights.load("hf://org/lite0@v2"), random_weights("lite0"))
    files = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    files += ["model-?????-of-?????.safetensors", "config.json"]
    assert asked == [("org/lite0", "v2", files)]
    with pytest.raises(UserError, match=r"can't fetch hf://org/gone: 401 Client Error\. Offline"):
        weights.load("hf://org/gone")
    with pytest.raises(UserError, match="write hf://ORG/NAME"):
        weights.load("hf://lite0")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        weights.load("hf://org/lite0")


def test_three_lines_in_a_notebook(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, random_weights())
    model, variables, preprocess = effnet_jax.load(str(path))
    assert model.architecture.num_classes == 10
    assert set(variables) == {"params", "batch_stats"}
    image = np.zeros((40, 50, 3), np.uint8)
    assert preprocess(image).shape == (1, 32, 32, 3)


def test_other_networks_are_saved_in_our_names_alone(tmp_path):
    with pytest.raises(UserError, match="unknown names 'torch'"):
        weights.save(tmp_path / "w.safetensors", random_weights(), names="torch")
    other = random_weights("resnet18")
    weights.save(tmp_path / "r.safetensors", other)
    check_equal(weights.load(tmp_path / "r.safetensors"), other)
    with pytest.raises(UserError, match="only for EfficientNets"):
        weights.save(tmp_path / "t.safetensors", other, names="timm")


def test_a_run_of_ours_has_its_averages_classes_and_preprocessing():
    expected = json.loads((golden_checkpoint.WORKDIR / "expected.json").read_text())["sums"]
    wanted = {"ema": expected["ema"], "raw": expected["params"] + expected["batch_stats"]}
    for which, total in wanted.items():
        step = "checkpoints/5" if which == "raw" else ""
        found = weights.load(golden_checkpoint.WORKDIR / step, weights=which)
        total_here = sum(array.sum(dtype=np.float64) for array in flat(found).values())
        assert total_here == pytest.approx(total, rel=1e-9)
    assert found.classes == tuple("0123456789") and found.preprocess["resolution"] == 16
    assert found.config.num_classes == 10


def test_a_file_is_loaded_in_any_folder_without_what_only_training_needs(tmp_path, elsewhere):
    path = tmp_path / "w.safetensors"
    weights.save(path, random_weights())
    program = f"""
import sys, effnet_jax
assert not {{"jax", "flax", "numpy"}} & sys.modules.keys()
effnet_jax.load({str(path)!r})
from effnet_jax.tools import convert, predict
convert.main(convert.PARSER.parse_args([{str(path)!r}, "--to=out", "--names=timm"]))
heavy = "orbax grain tensorflow tensorflow_datasets torch tensorboardX sklearn matplotlib h5py"
assert not set(heavy.split()) & sys.modules.keys(), set(heavy.split()) & sys.modules.keys()
from effnet_jax.tools import summary
summary.main(summary.PARSER.parse_args(["b0"]))
assert "configs" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, **elsewhere)
    check_equal(weights.load(elsewhere["cwd"] / "out"), random_weights())


def test_a_record_s_repr_is_one_screen():
    text = repr(random_weights("b0", 1000))
    assert len(text.splitlines()) == 7 and max(map(len, text.splitlines())) < 700
    assert "classes: 1000: label 0, label 1, label 2, ..." in text
    assert "5,330,564 numbers" in text  # 5,288,548 parameters, 42,016 of statistics.


def test_classes_and_variables_can_be_changed(tmp_path):
    found = random_weights()
    renamed = found.replace(classes=[f"digit {n}" for n in range(10)])
    assert renamed.classes[9] == "digit 9" and found.classes[9] == "label 9"
    check_equal(renamed, found)
    three = random_weights(classes=3)
    preprocess = dataclasses.replace(Preprocess(**found.preprocess), resolution=40)
    other = found.replace(
        classes=("cat", "dog", "cow"),
        variables=jax.device_put(three.variables),
        preprocess=preprocess,
    )
    assert (other.config.num_classes, found.config.num_classes) == (3, 10)
    assert (other.config.resolution, other.preprocess["resolution"]) == (40, 40)
    weights.save(tmp_path / "w.safetensors", other)
    back = weights.load(tmp_path / "w.safetensors")
    check_equal(back, three)
    assert back.config == other.config and back.classes == other.classes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["cat"]}, r"of another shape: params/classifier/kernel \(is \d+x10, should "),
        ({"classes": "imagenet"}, "classes must be a list of names, not 'imagenet'"),
        ({"classes": None}, "classes must be a list of names, not None"),
        ({"classes": range(10)}, "classes must be a list of names"),
        ({"preprocess": {}}, "missing or unknown: crop_fraction, .*std$"),
        ({"origin": "me"}, "unknown origin 'me'"),
        ({"variables": {"params": {}, "batch_stats": {}}}, "missing: params/stem/conv/kernel"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        random_weights().replace(**changes)


def test_nothing_is_written_that_load_would_refuse(tmp_path):
    path = tmp_path / "w.safetensors"
    found = random_weights()
    with pytest.raises(UserError, match="10 outputs, but 9 class names"):
        dataclasses.replace(found, classes=found.classes[1:])
    found.preprocess.clear()
    with pytest.raises(UserError, match="preprocess needs crop_fraction, "):
        weights.save(path, found)
    found = random_weights()
    found.variables["params"]["extra"] = np.zeros(3)
    with pytest.raises(UserError, match="left over: params/extra"):
        weights.save(path, found)
    with found.config.unlocked():
        found.config.num_classes = 7
    with pytest.raises(UserError, match=r"should be 7\)"):
        weights.save(path, found)
    assert not [*tmp_path.iterdir()]
