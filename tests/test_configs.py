"""Experiments: what their arguments choose."""

import operator
import re

import pytest
from conftest import ROOT

from configs import imagenet
from effnet_jax import config as default
from effnet_jax.errors import UserError
from effnet_jax.training.optimizer import multipliers


@pytest.mark.parametrize(
    ("argument", "policy", "magnitude"),
    [
        ("b0", "autoaugment", 10),
        ("b0,baseline", "none", 10),
        ("b3,autoaugment", "autoaugment", 10),
        # reference/augmentation.json, published_settings.
        ("b5,randaugment", "randaugment", 17),
        ("b7,randaugment", "randaugment", 28),
        ("b8,randaugment", "randaugment", 28),
        ("w=1.4,d=1.8,r=380,baseline", "none", 10),
        ("resnet50,phi=1.5,randaugment", "randaugment", 10),
        ("v2-s,baseline", "none", 10),
        ("v2-b3,randaugment", "randaugment", 10),
    ],
)
def test_imagenet_recipes(argument, policy, magnitude):
    config = imagenet.get_config(argument)
    assert config.augment.policy == policy
    assert config.augment.randaugment_magnitude == magnitude
    assert config.augment.randaugment_layers == 2
    plain = imagenet.get_config(
        argument.rpartition(",")[0] if "aug" in argument or "base" in argument else argument
    )
    assert config.model == plain.model
    assert not any(config.progressive.values())


@pytest.mark.parametrize(
    "argument", ["b0,basline", "baseline", "b0,", "b9,randaugment", "b0,progressive", "v2-s,"]
)
def test_unreadable_recipes(argument):
    with pytest.raises(UserError):
        imagenet.get_config(argument)


def test_v2_s_own_recipe():
    # google/automl efficientnetv2: hparams.py, effnetv2_configs.py, preprocessing.py. The stages
    # are in training/test_progressive.py.
    config = imagenet.get_config("v2-s")
    assert config == imagenet.get_config("v2-s,progressive")
    assert (config.batch_size, config.epochs) == (4096, 350)
    assert (config.augment.policy, config.augment.randaugment_magnitude) == ("randaugment", 10)
    assert (config.model.resolution, config.model.dropout) == (384, 0.2)
    assert config.model.batch_norm_momentum == 0.9
    assert config.model.batch_norm_scope == "reference_v2"
    assert config.data.train_split == "train[25022:]"  # datasets.py leaves the hold-out out.
    crops = {key: config.preprocess[f"crop_{key}"] for key in ("area", "aspect", "min_covered")}
    assert crops == {"area": (0.05, 1.0), "aspect": (0.75, 1.33), "min_covered": 0.0}
    assert (config.preprocess.crop_attempts, config.epoch_steps) == (100, "whole")
    assert config.augment.rounding == "truncate"
    assert (config.optimizer.rmsprop.weight_decay, config.ema.decay) == (1e-5, 0.9999)
    params = {"classifier": {"kernel": 0, "bias": 0}, "norm": {"scale": 0}}
    decayed = multipliers(config.optimizer.weight_decay_rules, params, "")
    assert decayed == {"classifier": {"kernel": 1, "bias": 0}, "norm": {"scale": 0}}
    assert config.preprocess.crop_rule == "whole"
    assert imagenet.get_config("v2-b0").preprocess.crop_rule == "padding"


def test_the_page_on_fidelity_names_keys_and_choices_that_exist():
    config = imagenet.get_config("v2-m")
    sections = "augment|checkpoint|data|ema|model|optimizer|preprocess"
    pattern = rf"(?:`|--config\.)((?:{sections})\.[\w.]+|epoch_steps)(?:=([\w.]+))?"
    found = re.findall(pattern, (ROOT / "docs" / "fidelity.md").read_text())
    assert len(found) > 10
    for key, value in found:
        section, _, name = key.rpartition(".")
        owner = operator.attrgetter(section)(config) if section else config
        owner[name] = type(owner[name])(value) if value else owner[name]
    default.validate(config)


def test_v2_m_mixes_as_the_reference_does():
    # datasets.py: halves of a replica's share, 4096 / 32, and one weight of labels for a half.
    augment = imagenet.get_config("v2-m").augment
    assert (augment.mixing, augment.cutmix_labels) == ("halves", "mean_area")
    assert augment.mix_group == 128
    assert imagenet.get_config("b0").augment.mixing == "drawn"
