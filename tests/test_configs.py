"""Experiments: what their arguments choose."""

import pytest

from configs import imagenet
from effnet_jax.errors import UserError


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


@pytest.mark.parametrize("argument", ["b0,basline", "baseline", "b0,", "b9,randaugment"])
def test_unreadable_recipes(argument):
    with pytest.raises(UserError):
        imagenet.get_config(argument)
