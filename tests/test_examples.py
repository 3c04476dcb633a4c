"""The examples, at small size: each learns something. models/test_backbone.py runs segmentation."""

import csv
import sys

import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from PIL import Image

from effnet_jax import weights

sys.path.insert(0, str(ROOT / "examples"))
import data_source
import fine_tune_folder
import regression_head
import training_loop

SMALLEST = "resnet18,w=0.1,d=0.1,r=16"  # Compiles in little time.


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Weights of a network of 16 px, in place of released ones."""
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    weights.save(path, weights.load(str(GOLDEN / "checkpoint_v1")))
    return str(path)


@pytest.fixture
def images(tmp_path):
    """Dark cats and bright dogs: DIR/train/CLASS/*.png and DIR/val/CLASS/*.png."""
    rng = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 180)):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(9):
                pixels = rng.normal(level, 20, (20, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"data/{split}/{name}/{index}.png")
    return tmp_path / "data"


def test_every_example_is_short():
    files = sorted((ROOT / "examples").glob("*.py"))
    assert len(files) == 5 and all(len(f.read_text().splitlines()) < 80 for f in files)


def test_fine_tuning_on_a_folder(images, stand_in, tmp_path, one_device):
    length = {"steps": 4, "eval_steps": 4, "checkpoint.save_steps": 4, "eval_batch_size": 16}
    changes = {**length, "data.threads": 2}
    scores = fine_tune_folder.fine_tune(str(images), stand_in, str(tmp_path / "run"), **changes)
    assert scores["val/ema/count"] == 18
    found = fine_tune_folder.classify(str(tmp_path / "run"), [str(images / "val/cat/0.png")] * 2)
    assert found[0] == found[1] and found[0] in ("cat", "dog")


def test_a_head_for_regression(stand_in):
    untrained = regression_head.main(stand_in, steps=0)
    assert regression_head.main(stand_in, steps=20) < 0.7 * untrained


def test_a_loop_of_ones_own_and_a_source_of_ones_own(images, tmp_path):
    assert training_loop.main(SMALLEST, steps=60) > 0.3  # Chance is 0.1.
    with open(images / "images.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("PATH", "CLASS"))
        for path in sorted(images.glob("train/*/*.png")):
            rows.writerow((path.relative_to(images), path.parent.name))
    made = data_source.CsvSource(images / "images.csv")
    assert len(made) == 18 and made.classes == ("cat", "dog")
    assert made.describe(9) == "train/dog/0.png" and made[9]["label"] == 1
    model = SMALLEST.replace("r=16", "r=32")
    losses = data_source.main(images / "images.csv", model, steps=20, batch=16)
    assert len(losses) == 20 and np.mean(losses[-3:]) < 0.7 * losses[0]
