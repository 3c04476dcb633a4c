"""Data sets in their authors' layouts: splits, labels, and messages for files that don't fit."""

import numpy as np
import pytest

from effnet_jax import config as default
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from tests.transfer_sets import CLASSES, COUNT, WRITERS


def config_for(name, root):
    config = default.get_config()
    config.data.update(source="split_files", name=name, data_dir=str(root), holdout=0.25)
    default.validate(config)
    return config.data


@pytest.mark.parametrize("name", WRITERS)
def test_splits_are_the_authors(name, tmp_path):
    data = config_for(name, WRITERS[name](tmp_path / name))
    found, paths = {}, {}
    for split in ("train", "validation", "trainval", "test"):
        found[split] = source = sources.open_source(data, split)
        assert source.classes == CLASSES[name]
        paths[split] = {source.describe(index) for index in range(len(source))}
        labels = [source[index]["label"] for index in range(len(source))]
        assert len(paths[split]) == len(labels)
        counts = np.bincount(labels, minlength=3)
        assert (counts == counts[0]).all() and counts[0] > 0
    assert paths["train"] | paths["validation"] == paths["trainval"]
    assert not paths["train"] & paths["validation"] and not paths["trainval"] & paths["test"]
    assert (len(found["trainval"]), len(found["test"])) == (2 * COUNT * 3, COUNT * 3)
    share = 0.5 if name == "fgvc_aircraft" else 0.25  # Aircraft has a validation split.
    assert len(found["validation"]) == share * len(found["trainval"])
    # An evaluation on images that were trained on is detected.
    for split, count in (("trainval", 6 * COUNT), ("test", 0)):
        training = data.copy_and_resolve_references()
        training.train_split = split
        assert sources.count_trained_on(found["trainval"], data, training, found[split]) == count


def test_labels_are_those_of_the_files(tmp_path):
    # The expected 5th line, row and path are independent of the reader.
    data = config_for("fgvc_aircraft", WRITERS["fgvc_aircraft"](tmp_path / "a"))
    line = (tmp_path / "a/data/images_variant_test.txt").read_text().splitlines()[4]
    source = sources.open_source(data, "test")
    assert source.describe(4).endswith(line[:7] + ".jpg")
    assert source.classes[source[4]["label"]] == line[8:]
    data = config_for("cars196", WRITERS["cars196"](tmp_path / "c"))
    source = sources.open_source(data, "trainval")
    assert source.describe(4).endswith("cars_train/00005.jpg") and source[4]["label"] == 1
    data = config_for("birdsnap", WRITERS["birdsnap"](tmp_path / "b"))
    source = sources.open_source(data, "test")
    assert source.describe(4).endswith("Acorn_Woodpecker/0.jpg") and source[4]["label"] == 1


def test_missing_images_are_counted_and_named(tmp_path):
    data = config_for("fgvc_aircraft", WRITERS["fgvc_aircraft"](tmp_path))
    source = sources.open_source(data, "test")
    for index in range(6):
        (tmp_path / source.describe(index)).unlink()
    with pytest.raises(UserError, match=r"6 of 12 images that .* lists are missing: ") as error:
        sources.open_source(data, "test")
    assert str(error.value).count(".jpg") == 5
    sources.open_source(data, "trainval")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("fgvc_aircraft", "data/images_variant_test.txt", " F/A-18", " F/A-19", "line 3: 'F/A-19'"),
        ("fgvc_aircraft", "data/images_variant_test.txt", "0000005", "0000002", "1 images twice"),
        ("fgvc_aircraft", "data/images_variant_test.txt", "", None, "has no images_variant_test"),
        ("birdsnap", "test_images.txt", "Acorn_Woodpecker/0", "Acorn/0", "1 images that images"),
        ("birdsnap", "images.txt", "species_id", "species", "don't have 'species_id'"),
        ("birdsnap", "test_images.txt", "", None, "has no test_images.txt"),
        ("cars196", "cars_test_annos_withlabels.mat", "", None, "has no devkit/cars_test_annos_w"),
        ("cars196", "cars_test_annos_withlabels.mat", "", "text", "can't read the annotations"),
    ],
)
def test_files_that_do_not_fit(name, file, old, new, message, tmp_path):
    data = config_for(name, WRITERS[name](tmp_path))
    path = tmp_path / file
    if new is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new, 1) if old else new)
    with pytest.raises(UserError, match=message):
        sources.open_source(data, "test")


def test_unknown_names_and_folders(tmp_path):
    data = config_for("fgvc_aircraft", tmp_path / "none")
    with pytest.raises(UserError, match=r"no folder .*none"):
        sources.open_source(data, "test")
    data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"has no variants\.txt"):
        sources.open_source(data, "test")
    with pytest.raises(UserError, match=r"unknown split of fgvc_aircraft 'val'; .*trainval"):
        sources.open_source(data, "val")
    data.name = "aircraft"
    with pytest.raises(UserError, match="fgvc_aircraft"):
        sources.open_source(data, "test")
