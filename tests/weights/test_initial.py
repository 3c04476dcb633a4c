"""Runs that start from weights: the network and preprocessing are theirs, and they load once."""

import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from conftest import GOLDEN, ROOT, config_for
from PIL import Image

import effnet_jax
from configs import folder
from effnet_jax import config as config_lib
from effnet_jax import models, weights
from effnet_jax.errors import UserError
from effnet_jax.weights import initial

RUN = GOLDEN / "checkpoint_v1"


@pytest.fixture
def experiment():
    config = folder.get_config()
    config.init.weights = str(RUN)
    return config


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(initial, "say", lines.append)
    return lines


def test_network_and_preprocessing_are_those_of_the_weights(experiment, tmp_path, said):
    config, load = initial.prepare(experiment, tmp_path)
    model, image = config.model, config.preprocess
    assert (model.base, model.width, model.resolution) == ("efficientnet_v2", 0.1, 16)
    assert (model.stem_stride, model.dropout) == (1, 0.2)
    assert (image.mean, image.interpolation, image.crop_padding) == ((0.5,) * 3, "bilinear", 0)
    assert said == [
        "preprocessing is that of the weights: interpolation bilinear, crop_rule padding, mean "
        "0.5, 0.5, 0.5"
    ]
    assert config.init.checksum == initial.checksum(load())
    # The experiment's own recipe stays, as do values that differ from the defaults.
    assert (model.batch_norm_momentum, image.flip) == (0.9, True)
    assert experiment.model.base == "efficientnet"
    said.clear()
    experiment.preprocess.interpolation = "area"
    experiment.model.resolution = 24
    config, _ = initial.prepare(experiment, tmp_path)
    assert (config.model.resolution, config.preprocess.interpolation) == (24, "area")
    assert "except for interpolation=area, which the experiment sets" in said[0]
    assert said[1] == "images have 24 px; the weights are for 16 px"
    experiment.init.preprocess = "own"
    config, _ = initial.prepare(experiment, tmp_path)
    assert config.preprocess.crop_padding == 32


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    config = folder.get_config("b0")
    config.init.weights = str(RUN)
    message = "weights of another model: efficientnet_v2 with w=0.1,d=0.1,r=16.*EXPERIMENT:w=0.1"
    with pytest.raises(UserError, match=message):
        initial.prepare(config, tmp_path)
    experiment = folder.get_config()
    experiment.model.beta = 1.3
    experiment.init.weights = str(RUN)
    with pytest.raises(UserError, match=r"but config\.model\.beta is set too"):
        initial.prepare(experiment, tmp_path)
    experiment = folder.get_config()
    with pytest.raises(UserError, match=r"config\.init\.weights is not set.*EXPERIMENT:b0"):
        config_lib.validate(experiment)
    experiment.init.weights = str(tmp_path / "no.npz")
    with pytest.raises(UserError, match=r"config\.init\.weights=.*no\.npz"):
        initial.prepare(experiment, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_is_fine_tuned_and_resumed_without_the_file(tmp_path, experiment, capsys):
    rng = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 180)):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(9):
                pixels = rng.normal(level, 20, (20, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"data/{split}/{name}/{index}.png")
    weights.save(tmp_path / "w.safetensors", weights.load(RUN))
    experiment.init.weights = str(tmp_path / "w.safetensors")
    experiment.data.data_dir = str(tmp_path / "data")
    experiment.eval_batch_size = 16
    experiment.steps, experiment.eval_steps, experiment.checkpoint.save_steps = 4, 4, 4
    experiment.data.threads = 2
    state, scores = effnet_jax.train(experiment, tmp_path / "run")
    output = capsys.readouterr().err
    assert "batch_size lowered to 16: there are 18 training images" in output
    assert "0 of 2 are taken, 2 are new (cat, dog), 10 of the weights' are not used" in output
    assert scores["val/ema/count"] == 18 and int(state.step) == 4
    saved = config_lib.load(tmp_path / "run")
    assert saved.init.checksum and saved.model.base == "efficientnet_v2"

    pathlib.Path(experiment.init.weights).unlink()
    experiment.steps = 6
    state, _ = effnet_jax.train(experiment, tmp_path / "run")
    assert int(state.step) == 6 and "resuming at step 4 of 6" in capsys.readouterr().err
    # Its weights are weights like others.
    found = weights.load(tmp_path / "run")
    assert found.classes == ("cat", "dog") and found.preprocess["resolution"] == 16
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"w\.safetensors"):
        effnet_jax.train(experiment, tmp_path / "run")


def test_a_network_for_other_classes_in_python():
    model, variables, preprocess = effnet_jax.load(str(RUN), num_classes=4)
    image = preprocess(np.zeros((20, 20, 3), np.uint8))
    logits, features = model.apply(variables, image, train=False)
    assert logits.shape == (1, 4) and not np.asarray(logits).any()
    assert np.asarray(features["pre_logits"]).any()
    made = effnet_jax.create_model("b0", num_classes=10, dtype="bfloat16")
    shapes = jax.eval_shape(made.init_variables, jax.random.key(0))
    assert shapes["params"]["classifier"]["kernel"].shape == (1280, 10)
    assert made.architecture == models.architecture(config_for("b0", num_classes=10))
    with pytest.raises(TypeError, match="unknown settings of a model: droput"):
        effnet_jax.create_model("b0", droput=0.1)


def test_the_loop_in_the_docs_learns_two_images(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs/fine_tuning.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    weights.save("lite0.safetensors", weights.load(RUN))
    names = {}
    assert block.count("range(5)") == 1
    exec(block.replace("range(5)", "range(25)"), names)  # The network here is not a trained one.
    assert names["loss"] < 0.6
