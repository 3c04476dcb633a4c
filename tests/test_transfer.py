"""configs/transfer.py: what was published, splits and recipes; every data set gives a batch."""

import numpy as np
import pytest
from conftest import ROOT, TINY, read_golden

from configs import transfer
from effnet_jax import config as default
from effnet_jax.data import pipeline, sources
from effnet_jax.errors import UserError
from effnet_jax.sweeps import runs
from effnet_jax.training import optimizer
from effnet_jax.training.supervisor import train_and_evaluate
from tests.transfer_sets import WRITERS, write_tfds

NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "birdsnap": "Birdsnap",
    "cars": "Stanford Cars",
    "flowers": "Flowers",
    "aircraft": "FGVC Aircraft",
    "pets": "Oxford-IIIT Pets",
    "food101": "Food-101",
}
# The splits and classes of TFDS 4.9 (tfds.builder(NAME).info), and as many images as make a batch.
TFDS = {
    "cifar10": (("train", "test"), 10),
    "cifar100": (("train", "test"), 100),
    "oxford_flowers102": (("train", "validation", "test"), 102),
    "oxford_iiit_pet": (("train", "test"), 37),
    "food101": (("train", "validation"), 101),
}


@pytest.mark.parametrize("name", NAMES)
def test_published_accuracies_and_images_are_the_papers(name):
    chosen = transfer.SETS[name]
    table5 = [row for row in read_golden("table5.csv") if row["dataset"] == NAMES[name]]
    assert chosen.paper == {
        row["efficientnet"].lower(): float(row["efficientnet_acc"]) for row in table5
    }
    (table6,) = [row for row in read_golden("table6.csv") if row["dataset"] == NAMES[name]]
    assert chosen.images == int(table6["train"])
    column = NAMES[name].removeprefix("Stanford ")
    v2 = [float(row[column]) for row in read_golden("v2_transfer.csv") if column in row]
    assert list(chosen.v2) == v2


def test_the_page_has_every_set_as_the_configs_have_it():
    text = (ROOT / "docs" / "transfer.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    rows = {row[1].strip("`"): row[2:9] for row in rows if len(row) == 10}
    for name, chosen in transfer.SETS.items():
        train, images, test, _, metric, paper, v2 = rows[name]
        assert (train, test) == (f"`{chosen.train}`", f"`{chosen.test}`")
        assert images == f"{chosen.images:,}"
        assert metric.replace("-", "").replace(" ", "_") == chosen.metric
        assert paper == ", ".join(f"{model.upper()} {top1}" for model, top1 in chosen.paper.items())
        assert v2 == ", ".join(map(str, chosen.v2))


@pytest.mark.parametrize("recipe", transfer.RECIPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_set_and_recipe_is_valid(name, recipe):
    model = "v2-s" if recipe == "v2" else "b0"
    config = transfer.get_config(f"{name},{model},{recipe}")
    default.validate(config)
    chosen = transfer.SETS[name]
    is_grid = recipe == "kornblith_grid"
    images = chosen.part_images if is_grid else chosen.images
    assert (config.data.eval_split == chosen.test) != is_grid
    assert not config.checkpoint.keep_best  # Test images choose nothing.
    examples = optimizer.epoch_examples(config, images)
    steps = optimizer.steps(config.epochs, config.batch_size, examples)
    rate = optimizer.learning_rate(config, images)
    if recipe == "v2":  # google/automl efficientnetv2/datasets.py, ImagenetFt; augname "ft".
        assert (steps, config.batch_size, config.ema.decay) == (10_000, 512, 0.9996)
        np.testing.assert_allclose(rate(np.array([5_000, 9_999])), 0.001, rtol=1e-6)
        assert (config.model.dropout, config.model.survival_probability) == (0.0, 0.8)
        assert (config.augment.policy, config.augment.mixup_alpha) == ("none", 0.0)
        assert config.augment.cutout == 0.5
    elif recipe == "paper":
        assert config.optimizer.rmsprop.learning_rate == 0.016 / 4
        assert (config.epochs, config.augment.policy) == (350, "autoaugment")
    else:
        assert (steps, config.batch_size, config.optimizer.name) == (20_000, 256, "sgd")
        assert (config.optimizer.sgd.momentum, config.optimizer.sgd.nesterov) == (0.9, True)


def test_batch_norm_momentum_of_kornblith():
    # max(1 - 10/s, 0.9) with s steps an epoch: 195.3 for CIFAR-10, 8.0 for Flowers.
    momentum = {
        name: transfer.get_config(f"{name},b0,kornblith").model.batch_norm_momentum
        for name in ("cifar10", "flowers", "food101")
    }
    expected = {"cifar10": 0.9488, "flowers": 0.9, "food101": 1 - 10 / (75_750 / 256)}
    assert momentum == pytest.approx(expected)
    assert transfer.get_config("cifar10,b0").model.batch_norm_momentum == 0.99


@pytest.mark.parametrize("argument", ["cifar10", "cifar,b0", "cifar10,b9", "cifar10,b0,v3", ""])
def test_unreadable_arguments(argument):
    with pytest.raises(UserError):
        transfer.get_config(argument)


def test_the_grid_of_kornblith_is_7_by_8_and_never_sees_the_test_images():
    config = transfer.get_config(f"flowers,{TINY},kornblith_grid")
    config.model.num_classes = 102
    found = list(runs.expand(config, "kornblith"))
    rates, decays = (
        [run.overrides[f"optimizer.sgd.{key}"] for run in found]
        for key in ("learning_rate", "weight_decay")
    )
    assert len({run.name for run in found}) == len(found) == 7 * 8
    # np.logspace's values, written out; the decays are divided by the rate.
    exact = [1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2, 3.16228e-2, 1e-1]
    assert list(dict.fromkeys(rates)) == pytest.approx(exact)
    products = [rate * decay for rate, decay in zip(rates[-8:], decays[-8:], strict=True)]
    assert products == pytest.approx([1e-6, *(x / 100 for x in exact[1:]), 0], rel=1e-4)
    runs.apply(config, found[-1])
    for name in NAMES:
        with pytest.raises(UserError, match="on the test images"):
            list(runs.expand(transfer.get_config(f"{name},b0,kornblith"), "kornblith"))
    with pytest.raises(UserError, match="no argument"):
        list(runs.expand(config, "kornblith:3"))


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    """A folder with a miniature of each data set, for `data_dir`, by its name."""
    root = tmp_path_factory.mktemp("transfer")
    for name, (splits, classes) in TFDS.items():
        write_tfds(root / "tfds", name, splits, classes)
    return {name: str(write(root / name)) for name, write in WRITERS.items()} | dict.fromkeys(
        TFDS, str(root / "tfds")
    )


@pytest.mark.parametrize("recipe", ("paper", "kornblith_grid"))
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_each_data_set(name, recipe, miniatures):
    config = transfer.get_config(f"{name},{TINY},{recipe}")
    config.data.data_dir = miniatures[config.data.name]
    config.batch_size, config.data.threads = 2, 1
    for key in ("train_split", "eval_split"):
        if "45000" in config.data[key]:  # CIFAR's last tenth, of 20 images.
            config.data[key] = config.data[key].replace("45000", "90%")
    found = [
        sources.open_source(config.data, config.data[f"{part}_split"]) for part in ("train", "eval")
    ]
    assert found[0].classes == found[1].classes
    assert not sources.count_trained_on(found[1], config.data, config.data, found[0])
    batch = pipeline.train_batches(found[0], config, 16, 0, 1)[0]
    assert batch["image"].shape == (2, 16, 16, 3)
    assert batch["label"].max() < len(found[0].classes)


def test_one_of_them_trains_to_the_end_and_keeps_its_last_weights(miniatures, tmp_path, one_device):
    config = transfer.get_config(f"aircraft,{TINY}")
    config.data.data_dir = miniatures["fgvc_aircraft"]
    config.update(batch_size=12, eval_batch_size=12, epochs=1.0, eval_epochs=1.0)
    config.data.threads, config.checkpoint.save_epochs = 1, 1.0
    config.model.stem_stride, config.model.dtype = 1, "float32"
    _, found = train_and_evaluate(config, tmp_path)
    assert found["val/ema/count"] == 12
