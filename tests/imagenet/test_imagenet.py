"""ImageNet's whole way in miniature: tars, prepare, train with AutoAugment, evaluate."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import imagenet
from effnet_jax.data import folders, sources
from effnet_jax.errors import UserError
from effnet_jax.imagenet import prepare, shards
from effnet_jax.training import evaluations, supervisor
from tests.evaluating import evaluate_run
from tests.imagenet import miniature


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """Prepared from tars with a CMYK image, a PNG and a truncated image, the last one dropped."""
    tars, data_dir = tmp_path_factory.mktemp("tars"), tmp_path_factory.mktemp("data")
    miniature.make_miniature(tars)
    settings = shards.Settings(size="256")
    with pytest.raises(UserError, match="damaged image"):
        prepare.prepare(tars, data_dir, settings, subset=True)
    made = prepare.prepare(tars, data_dir, settings._replace(drop=True), subset=True)
    assert sorted(why for _, report in made for _, why in report.repaired) == [
        "CMYK JPEG",
        "RGB PNG",
    ]
    assert sum(len(report.dropped) for _, report in made) == 1
    return data_dir


def tiny_imagenet(data_dir: pathlib.Path, recipe: str = "autoaugment"):
    """Two epochs of ImageNet's recipe with the smallest network; all runs compile one program."""
    config = imagenet.get_config(f"efficientnet_v2,w=0.1,d=0.1,r=32,{recipe}")
    config.batch_size = config.eval_batch_size = 16
    config.epochs, config.eval_epochs, config.log_steps = 2.0, 1.0, 2
    config.schedule.name, config.schedule.warmup_epochs = "constant", 0.0
    config.optimizer.rmsprop.learning_rate = 0.128
    config.model.dtype = "float32"
    config.data.data_dir = str(data_dir)
    return config


def test_prepare_train_evaluate(data_dir, tmp_path, capsys):
    config = tiny_imagenet(data_dir)
    assert config.augment.policy == "autoaugment"
    state, scores = supervisor.train_and_evaluate(config, tmp_path)
    assert int(state.step) == 2 * 59 // 16
    assert scores["val/raw/count"] == scores["val/ema/count"] == miniature.VALIDATION_IMAGES
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert len(classes) == 1000
    result = evaluate_run(tmp_path)
    assert result["count"] == miniature.VALIDATION_IMAGES
    assert result["top1"] == scores["val/ema/top1"]
    assert result["loss"] == pytest.approx(scores["val/ema/loss"], rel=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train_loss"] for row in rows if "train_loss" in row]
    assert losses[-1] < losses[0]  # From ln(1000) towards the five classes that there are.
    assert "trained_on" not in result
    # It was trained on all of train: minival is part of that.
    held_out = evaluate_run(tmp_path, data="imagenet_minival")
    assert held_out["trained_on"] == held_out["count"] > 0
    assert "warning: the run was trained on 7 of these 7 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "evaluation", "shared"),
    [
        ("train", "minival", 7),
        ("train[3:]", "minival", 4),
        ("train[7:]", "minival", 0),
        ("train[:50%]", "train[20:40]+validation", 10),
        ("train", "validation", 0),
    ],
)
def test_images_that_are_trained_on_are_reported(train, evaluation, shared, data_dir, capsys):
    config = tiny_imagenet(data_dir)
    config.data.train_split, config.data.eval_split = train, evaluation
    source = sources.open_source(config.data, train)
    found = evaluations._open(config, "val", source)
    assert sources.count_trained_on(found, config.data, config.data) == shared
    training = config.data.copy_and_resolve_references()
    training.name = "imagenet2012:5.1.0"
    assert sources.count_trained_on(found, config.data, training) == shared
    assert (
        sources.count_trained_on(sources.open_source(training, evaluation), training, config.data)
        == shared
    )
    warning = f"warning: {shared} of {len(found)} images of evaluation 'val' are trained on"
    assert (warning in capsys.readouterr().err) == bool(shared)


def test_image_files_that_are_trained_on_are_counted(tmp_path):
    data = tiny_imagenet(miniature.make_folder(tmp_path, flat=False)).data
    data.source, data.train_split = "folder", "train"
    trained = sources.open_source(data, "train")
    for split, shared in (("train", 60), ("val", 0)):
        found = sources.open_source(data, split)
        assert sources.count_trained_on(found, data, data, trained) == shared


def test_copies_of_trained_images_are_counted_whatever_their_path(tmp_path, monkeypatch):
    data = tiny_imagenet(miniature.make_folder(tmp_path / "a", flat=False)).data
    data.source, data.train_split = "folder", "train"
    trained = sources.open_source(data, "train")
    shutil.copytree(tmp_path / "a" / "train", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "train")
    monkeypatch.chdir(tmp_path)
    for path in ("a/train", "link", "copy"):
        data.data_dir = path
        found = sources.open_source(data, ".")
        assert sources.count_trained_on(found, data, data, trained) == 60, path
    # Of many files only those of equal names are compared; here all have other names.
    for number, path in enumerate(sorted(pathlib.Path("copy").glob("*/*"))):
        path.rename(path.with_name(f"{number}{path.suffix}"))
    data.data_dir = "copy"
    for most, shared in ((folders.COMPARED, 60), (59, 0)):
        monkeypatch.setattr(folders, "COMPARED", most)
        found = sources.open_source(data, ".")
        assert sources.count_trained_on(found, data, data, trained) == shared


def test_a_truncated_image_stops_the_run_or_is_skipped(data_dir, tmp_path, capfd):
    folder = tmp_path / "images"
    miniature.make_folder(folder, flat=False)
    config = tiny_imagenet(data_dir)
    config.data.source, config.data.data_dir = "folder", str(folder)
    config.data.eval_split = "val"
    config.model.num_classes = 1000
    bad = next(path for path in (folder / "train").rglob(f"*_{miniature.TRUNCATED * 37}.JPEG"))
    with pytest.raises(UserError, match=bad.name):  # Before the first step, where it is looked at.
        supervisor.train_and_evaluate(config, tmp_path / "checked")
    config.data.check_images = 0
    with pytest.raises(UserError, match=rf"{bad.name}.*Last good checkpoint"):
        supervisor.train_and_evaluate(config, tmp_path / "stopped")
    config.data.on_corrupt = "skip"
    state, scores = supervisor.train_and_evaluate(config, tmp_path / "skipped")
    assert int(state.step) == 2 * 60 // 16
    assert np.isfinite(scores["val/ema/loss"])
    assert f"skipped: cannot read {bad}" in capfd.readouterr().err
    rows = map(json.loads, (tmp_path / "skipped/metrics.jsonl").read_text().splitlines())
    assert sum(row.get("skipped_images", 0) for row in rows) in (1, 2)


def test_synthetic_data_takes_the_pipeline_out(tmp_path):
    config = tiny_imagenet(tmp_path / "nothing here")
    config.data.synthetic = True
    config.epochs = 16 * 6 / 1_281_167
    state, scores = supervisor.train_and_evaluate(config, tmp_path / "run")
    assert int(state.step) == 6
    assert scores["val/raw/count"] == 1000
