"""Digits, image folders and TFDS data sets, and the messages when they are missing or wrong."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from configs import folder
from effnet_jax.data import folders, pipeline, sources
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError
from tests.tfds_sets import write_features, write_set

IMAGES = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
LABELS = [0] * len(IMAGES)


def make_folder(root: pathlib.Path, classes: dict[str, int], suffix: str = ".png") -> pathlib.Path:
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((20, 24, 3), 40 * label + index, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03d}{suffix}")
    return root


def config_for(root: pathlib.Path):
    config = folder.get_config("b0").data
    config.data_dir = str(root)
    return config


def test_digits_are_scikit_learn_s():
    digits = load_digits()
    splits = {name: sources.digits_source("digits", None, name) for name in ("train", "test")}
    assert {name: len(source) for name, source in splits.items()} == {"train": 1437, "test": 360}
    assert splits["train"].classes == tuple("0123456789")
    # Every image is in one of the splits once, with its label.
    seen = sorted(
        (decode_image(record["image"])[..., 0].tobytes(), record["label"])
        for source in splits.values()
        for record in (source[index] for index in range(len(source)))
    )
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    expected = zip((image.tobytes() for image in pixels), digits.target.tolist(), strict=True)
    assert seen == sorted(expected)
    assert splits["train"].describe(3) == "image 3 of the digits' train split"
    some = sources.digits_source("digits", None, "train[100:102]+test[:1]")
    whole = [splits["train"][100], splits["train"][101], splits["test"][0]]
    np.testing.assert_equal([some[index] for index in range(len(some))], whole)


def test_folder_with_splits(tmp_path):
    make_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    make_folder(tmp_path / "val", {"cat": 1, "dog": 1}, ".jpg")
    config = config_for(tmp_path)
    train, val = (sources.open_source(config, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (5, 2)
    assert train.classes == val.classes == ("cat", "dog")
    assert [train[index]["label"] for index in range(5)] == [0, 0, 0, 1, 1]
    assert decode_image(train[4]["image"])[0, 0, 0] == 41
    assert train.describe(4).endswith("dog/001.png")


def test_folder_without_splits_holds_out_a_tenth_of_each_class(tmp_path):
    config = config_for(make_folder(tmp_path / "all", {"a": 20, "b": 11}))
    train, val = (sources.open_source(config, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (18 + 10, 2 + 1)
    names = [source.describe(index) for source in (train, val) for index in range(len(source))]
    assert len(set(names)) == 31
    assert {val[index]["label"] for index in range(3)} == {0, 1}


def test_folders_that_can_not_be_trained_on(tmp_path):
    def fails(root, message):
        with pytest.raises(UserError, match=message):
            sources.open_source(config_for(root), "train")

    fails(tmp_path / "nowhere", "no image folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "has no class folder and at least 2 are needed: DIR/CLASS")
    fails(make_folder(tmp_path / "single", {"cat": 3}), "1 class folder, cat, and at least 2")
    fails(make_folder(tmp_path / "hollow", {"cat": 3, "dog": 0}), "no image in .*dog")
    make_folder(tmp_path / "uneven" / "train", {"cat": 2, "dog": 2})
    val = make_folder(tmp_path / "uneven" / "val", {"cat": 1})
    with pytest.raises(UserError, match=r"val has 1 class folder, cat, .*: add dog, which .*train"):
        sources.open_source(config_for(val.parent), "val")
    (val / "cow").mkdir()
    (val / "dog").mkdir()
    shutil.rmtree(val.parent / "train" / "dog")
    fails(val.parent, "train has 1 class folder, cat, .*: add cow, dog, which .*val has")
    make_folder(tmp_path / "half" / "val", {"cat": 1, "dog": 1})
    fails(tmp_path / "half", "no folder 'train'")
    with pytest.raises(UserError, match="no image folder given"):
        sources.open_source(folder.get_config("b0").data, "train")


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (["Training", "Testing"], "Training", "Testing"),
        (["Train", "Test", "Val"], "Train", "Val"),
        (["TRAIN", "valid"], "TRAIN", "valid"),
        (["seg_pred", "seg_test", "seg_train"], "seg_train", "seg_(pred|test)"),
        (["cat", "dog", "test"], "NAME", "test"),
        (["test_set", "training_set"], "training_set", "test_set"),
        (["images", "masks"], "NAME", "images|masks"),
        (["Images", "Labels"], "NAME", "Images|Labels"),
        (["img", "ground_truth"], "NAME", "img|ground_truth"),
        (["train_256", "dev", "test1"], "train_256", "dev|test1"),
        (["x_train", "holdout"], "x_train", "holdout"),
    ],
)
def test_splits_are_not_taken_for_classes(tmp_path, names, train, validation):
    config = config_for(make_folder(tmp_path, dict.fromkeys(names, 2)))
    remedy = f"train_split={train} --config.data.eval_split=({validation}),"
    with pytest.raises(UserError, match=remedy):
        sources.open_source(config, "train")


def test_split_folders_of_any_name_can_be_given(tmp_path):
    for part in ("seg_train/seg_train", "seg_test/seg_test"):
        make_folder(tmp_path / part, {"bus": 2, "train": 3})  # Here a train is a vehicle.
    config = config_for(tmp_path)
    config.train_split, config.eval_split = "seg_train/seg_train", "seg_test/seg_test"
    train, val = (sources.open_source(config, s) for s in (config.train_split, config.eval_split))
    assert train.classes == val.classes == ("bus", "train") and len(train) == 5
    assert train.summary() == (
        f"{tmp_path / config.train_split}: 5 of 5 images, 2 classes: bus, train; "
        "images per class: 2 (bus) to 3 (train)"
    )
    make_folder(tmp_path / "mixed", {"bus/train": 2, "bus/test": 2, "car/train": 2})
    config.data_dir = str(tmp_path / "mixed")
    with pytest.raises(UserError, match=r"bus/t\w+ has images.*the class 'bus'"):
        sources.open_source(config, "train")


def test_images_of_every_kind_are_read_and_what_is_left_out_is_counted(tmp_path):
    root = make_folder(tmp_path, {"cat": 4, "dog": 4})
    kinds = ("webp", "bmp", "tif", "TIFF", "jpe", "JFIF")
    image = Image.fromarray(np.full((20, 24, 3), 9, np.uint8))
    for kind in kinds:
        image.save(root / "cat" / f"x.{kind}")
    hidden = ("@eaDir", ".ipynb_checkpoints", "__MACOSX", "sub/@eaDir")
    for name in hidden:
        (root / "cat" / name).mkdir(parents=True)
        image.save(root / "cat" / name / "y.jpg")
    for name in ("@eaDir", ".ipynb_checkpoints", "__MACOSX"):
        (root / name).mkdir()
        image.save(root / name / "y.jpg")
    for name in ("cat/._x.jpg", "cat/Thumbs.db", "dog/.DS_Store", "desktop.ini"):
        (root / name).write_bytes(b"no image")
    for name in ("cat/a.gif", "cat/b.GIF", "dog/notes", "dog/a.heic", "readme.txt", "loose.jpg"):
        (root / name).write_bytes(b"no image")
    config = config_for(root)
    train, val = (sources.open_source(config, split) for split in ("train", "val"))
    assert train.classes == ("cat", "dog")
    assert len(train) + len(val) == 8 + len(kinds)
    assert {decode_image(val[index]["image"]).shape for index in range(len(val))} == {(20, 24, 3)}
    pipeline.check_images(train, 1000, 2)
    start, _, endings = train.summary().partition("; files left out: ")
    counts = "images per class: 3 (dog) to 9 (cat)"
    assert start == f"{root}: 12 of 14 images, 2 classes: cat, dog; {counts}"
    assert endings.startswith("6 (2 .gif, 1 ")
    for ending in (".jpg in no class folder", ".txt in no class folder", "without ending", ".heic"):
        assert f"1 {ending}" in endings


def test_a_class_with_over_ten_times_the_images_of_another_is_reported(tmp_path):
    root = make_folder(tmp_path, {"train/cat": 2, "train/dog": 20, "val/cat": 1, "val/dog": 1})
    assert sources.open_source(config_for(root), "train").warnings() == []
    (root / "train" / "dog" / "another.jpg").write_bytes(b"")
    (warning,) = sources.open_source(config_for(root), "train").warnings()
    assert "class 'dog' has 21 images, more than 10 times the 2 of 'cat'" in warning
    assert "mean_per_class" in warning


def test_a_link_back_is_refused(tmp_path):
    """If it were followed, its images would count forty times."""
    root = make_folder(tmp_path, {"cat": 2, "dog": 2})
    (root / "cat" / "again").symlink_to(root / "cat")
    with pytest.raises(UserError, match=r"cat/again links to .*/cat, which is read already"):
        sources.open_source(config_for(root), "train")
    (root / "cat" / "again").unlink()
    assert "images per class: 1 each" in sources.open_source(config_for(root), "train").summary()


def test_names_of_classes_are_composed_and_two_forms_of_one_are_refused(tmp_path):
    make_folder(tmp_path / "train", {"caf\u00e9": 2, "cafz": 2})
    make_folder(tmp_path / "val", {"cafe\u0301": 2, "cafz": 2})  # As other file systems store it.
    config = config_for(tmp_path)
    assert {folders.folder_source(config, name).classes for name in ("train", "val")} == {
        ("cafz", "caf\u00e9")
    }
    make_folder(tmp_path / "val", {"caf\u00e9": 2})
    with pytest.raises(UserError, match=r"two class folders with the name .*, in two forms"):
        folders.folder_source(config, "val")


def test_folders_of_classes_that_are_not_meant_are_refused_or_reported(tmp_path):
    def fails(name, message):
        with pytest.raises(UserError, match=message):
            sources.open_source(config_for(tmp_path / name), "train")

    # A folder of cats was dropped into the one of dogs; its images would count as dogs.
    make_folder(tmp_path / "nested", {"cat": 2, "dog": 2, "dog/cat": 2})
    fails("nested", r"dog/cat has images, but is named like .*; move it out of the class 'dog'")
    make_folder(tmp_path / "linked", {"cat": 2, "dog": 2})
    (tmp_path / "linked/kitten").symlink_to("cat")
    fails("linked", r"linked/cat and .*linked/kitten are the same folder; remove the link")
    make_folder(tmp_path / "latin", {"cat": 2, "dog": 2})
    os.mkdir(os.fsencode(tmp_path) + b"/latin/caf\xe9")
    fails("latin", r"class folder with the name b'caf\\xe9', which isn't UTF-8; rename it")
    names = dict.fromkeys(("Cat", "cat", "bull dog", "bull_dog", "1_1", "11", "cat - Copy (2)"), 2)
    source = sources.open_source(config_for(make_folder(tmp_path / "case", names)), "train")
    assert [line.partition(" differ")[0] for line in source.warnings()] == [
        "warning: the class names 'Cat' and 'cat' and 'cat - Copy (2)'",
        "warning: the class names 'bull dog' and 'bull_dog'",
    ]


def test_folds_and_masks_among_the_images_are_reported(tmp_path):
    def warnings(name):
        return sources.open_source(config_for(tmp_path / name), ".").warnings()

    parts = [f"{fold}/{name}" for fold in ("2019", "fold 1") for name in ("cat", "dog")]
    make_folder(tmp_path / "folds", dict.fromkeys(parts, 1))
    (line,) = warnings("folds")
    assert "all class folders contain the same folders: cat, dog. If those are the classes" in line
    root = make_folder(tmp_path / "scans", {"benign": 3, "normal": 3})
    for name in ("benign/000_mask.png", "benign/000_mask_1.png", "normal/a_mask.png"):
        (root / name).write_bytes(b"")
    (line,) = warnings("scans")
    assert (
        f"2 images have the names of masks of other images, such as {root}/benign/000_mask" in line
    )


def test_a_file_name_in_another_encoding_can_be_written(tmp_path):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    os.rename(tmp_path / "cat/000.png", os.fsencode(tmp_path) + b"/cat/caf\xe9.png")
    source = sources.open_source(config_for(tmp_path), ".")
    named = [source.describe(index) for index in range(len(source))]
    assert f"{tmp_path}/cat/caf\\xe9.png" in named and "".join(named).encode()
    command = [
        sys.executable,
        "-c",
        "from effnet_jax import cli\nwith cli.output(): print('\\udce9')",
    ]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": os.getcwd()}
    assert subprocess.check_output(command, env=strict) == b"\\udce9\n"


def test_a_class_behind_a_broken_link_is_named_and_loose_images_too(tmp_path):
    make_folder(tmp_path, {"cat": 3, "dog": 2})
    (tmp_path / "cat" / "000.png").rename(tmp_path / "loose.png")
    summary = folders.folder_source(config_for(tmp_path), "train").summary()
    assert "1 .png in no class folder); move each image" in summary
    (tmp_path / "emu").symlink_to(tmp_path / "disk" / "emu")
    with pytest.raises(UserError, match="emu is a broken link; mount"):
        folders.folder_source(config_for(tmp_path), "train")


def test_classes_that_differ_between_splits_are_named():
    with pytest.raises(UserError, match=r"split 'val' lacks dog; training lacks cow$"):
        sources.check_classes(("cat", "cow"), ("cat", "dog"), "val")
    sources.check_classes(("cat",), ("cat",), "val")


def test_a_corrupt_image_is_named_before_training(tmp_path):
    root = make_folder(tmp_path, {"cat": 8, "dog": 8})
    bad = root / "dog" / "003.png"
    bad.write_bytes(bad.read_bytes()[:50])
    source = sources.open_source(config_for(root), "train")
    with pytest.raises(UserError, match=r"003\.png"):
        pipeline.check_images(source, 1000, 2)


def test_tfds_that_is_not_there_gives_the_command(tmp_path):
    message = rf"tfds build mnist --data_dir={tmp_path} --file_format=array_record"
    with pytest.raises(UserError, match=message):
        sources.TfdsSource("mnist", str(tmp_path), "train")
    message = rf"effnet-jax prepare_imagenet --from=DIR --data_dir={tmp_path}"
    with pytest.raises(UserError, match=message):
        sources.TfdsSource("imagenet2012", str(tmp_path), "train")
    with pytest.raises(UserError, match="no directory"):
        sources.TfdsSource("imagenet2012", str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match="did you mean: tfds"):
        config = folder.get_config("b0").data
        config.source = "tdfs"
        sources.open_source(config, "train")


def test_tfds_in_another_format_gives_the_command(tmp_path):
    write_set(tmp_path, "small", "train", IMAGES, LABELS)
    info = tmp_path / "small" / "1.0.0" / "dataset_info.json"
    values = json.loads(info.read_text())
    values["fileFormat"] = "tfrecord"
    info.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"tfds convert_format .*--out_file_format=array_record"):
        sources.TfdsSource("small", str(tmp_path), "train")


def test_tfds_sets_with_other_features(tmp_path):
    number, named = tfds.features.Scalar(np.int64), tfds.features.ClassLabel(names=["cat", "dog"])
    pixels = IMAGES[:3]
    png = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in pixels]
    kinds = {  # Key of the image, its feature, and values.
        "flat": ("image/encoded", tfds.features.Text(), png),
        "tensor": ("image", tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8), pixels),
        "grey": ("picture", tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8), pixels[..., :1]),
        "floats": (
            "image",
            tfds.features.Tensor(shape=(8, 8, 3), dtype=np.float32),
            np.float32(pixels),
        ),
    }
    for name, (key, feature, values) in kinds.items():
        features = {key: feature, "image/class/label": number, "kind": named}
        records = [{key: v, "image/class/label": i, "kind": i % 2} for i, v in enumerate(values)]
        write_features(tmp_path, name, features, records)
        if name == "floats":
            with pytest.raises(UserError, match=r"'image' is Tensor .* of .*float32.*uint8"):
                sources.TfdsSource(name, str(tmp_path), "train", "kind", key)
            continue
        source = sources.TfdsSource(name, str(tmp_path), "train", "image/class/label", key, 3)
        assert source.classes == ("0", "1", "2")
        records = [source[index] for index in range(3)]
        by_label = {record["label"]: decode_image(record["image"]) for record in records}
        for label, image in by_label.items():
            wanted = pixels[label][..., : 1 if name == "grey" else 3]
            np.testing.assert_array_equal(image, np.broadcast_to(wanted, (8, 8, 3)))
        assert sorted(by_label) == [0, 1, 2]
        assert sources.TfdsSource(name, str(tmp_path), "train", "kind", key).classes == (
            "cat",
            "dog",
        )
    with pytest.raises(UserError, match=r"integer without names .*--config.data.label_count=10"):
        sources.TfdsSource("flat", str(tmp_path), "train", "image/class/label", "image/encoded")
    with pytest.raises(UserError, match=r"'image' is missing, .*config\.data\.image"):
        sources.TfdsSource("flat", str(tmp_path), "train", "kind")
    nested = {"image": {"encoded": tfds.features.Image(), "label": named}}
    write_features(tmp_path, "nested", nested, [{"image": {"encoded": png[0], "label": 1}}])
    source = sources.TfdsSource("nested", str(tmp_path), "train", "image/label", "image/encoded")
    np.testing.assert_array_equal(decode_image(source[0]["image"]), pixels[0])
    with pytest.raises(
        UserError, match=r"no data set 'flat:9\.9\.9' in .*, which has flat:1\.0\.0"
    ):
        sources.TfdsSource("flat:9.9.9", str(tmp_path), "train")


@pytest.mark.parametrize("left", [None, 0, 0.5, 0.9])
def test_a_file_that_is_not_whole_is_named(tmp_path, left):
    write_set(tmp_path, "small", "train test", IMAGES, LABELS)
    (file,) = (tmp_path / "small").glob("*/*-train*")
    data = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(data[: int(len(data) * left)])
    message = f"{file.name} " + ("is missing" if left is None else "has .*0 of its 400 records")
    with pytest.raises(UserError, match=message):
        sources.TfdsSource("small", str(tmp_path), "train")
    assert len(sources.TfdsSource("small", str(tmp_path), "test")) == 400


def test_an_unknown_split_lists_those_there_are(tmp_path):
    with pytest.raises(UserError, match=f"data_dir={tmp_path} does not apply to the digits"):
        sources.digits_source("digits", str(tmp_path), "train")
    with pytest.raises(UserError, match="which has test, train"):
        sources.digits_source("digits", None, "validation")
    write_set(tmp_path, "small", "train test", IMAGES[:2], LABELS)
    with pytest.raises(UserError, match="which has test, train"):
        sources.TfdsSource("small", str(tmp_path), "validation")


def test_folders_of_one_name_are_told_apart(tmp_path):
    def identity(name, classes, suffix=".png"):
        folder = make_folder(tmp_path / name / "data", classes, suffix)
        return sources.identity(sources.open_source(config_for(folder), "val"))

    pets = {"cat": 2, "dog": 2}
    first = identity("a", pets)
    assert first == identity("b", pets) and first.startswith("2 records ")
    others = [{"cat": 2, "cow": 2}, {"cat": 2, "dog": 20}]
    found = {identity(f"other{n}", classes) for n, classes in enumerate(others)}
    found |= {first, identity("jpg", pets, ".jpg")}  # Other images, but the same classes and count.
    assert len(found) == 4
    source = sources.open_source(config_for(tmp_path / "a" / "data"), "val")
    assert sources.identity(sources.with_classes(source, ("bat", "cat", "dog"), "val")) == first
    pathlib.Path(source.describe(0)).unlink()  # Damaged data is reported elsewhere.
    assert sources.identity(source).startswith("2 records ")
    assert len({sources.identity(sources.digits_source("digits", None, "test")) for _ in "ab"}) == 1
