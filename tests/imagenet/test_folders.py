"""The evaluation sets in the folders that their authors ship, read with the labels of TFDS's."""

import json

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.sources import MOST_LABELS
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import folders
from effnet_jax.imagenet.variants import load_evaluation_set
from tests.tfds_sets import WNIDS

A, R = (load_evaluation_set(name).data.eval_classes for name in ("imagenet_a", "imagenet_r"))
ONLY_A, ONLY_R = sorted(set(A) - set(R))[:4], sorted(set(R) - set(A))[:4]
VALIDATION = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 7)]
LABELS = [imagenet.validation_label(name, "") for name in VALIDATION]


def write_images(folder, files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name, "JPEG")
    return folder


def open_set(name, data_dir, part=""):
    data = load_evaluation_set(name).data
    data.name, data.data_dir = data.name + part, str(data_dir)
    return folders.open_set(data)


def labels(*arguments):
    return [record["label"] for record in open_set(*arguments)]


def in_classes(names, file="art_{}.jpg"):
    return [f"{wnid}/{file.format(n)}" for n, wnid in enumerate(names)]


def fails(message, *arguments):
    with pytest.raises(UserError, match=message):
        open_set(*arguments)


@pytest.fixture
def unpacked(tmp_path):
    """A folder with ImageNet-A, -R and -Sketch, each in the folder of its archive."""
    write_images(tmp_path / "imagenet-a", in_classes(ONLY_A, "0.0001{}_fox squirrel _ fox.jpg"))
    (tmp_path / "imagenet-a/README.txt").write_text("")
    write_images(tmp_path / "imagenet-r", in_classes(ONLY_R))
    write_images(tmp_path / "sketch", in_classes(WNIDS[:4], "sketch_{}.JPEG"))
    return tmp_path


def test_sets_of_wordnet_ids(unpacked):
    for name, folder, classes in (
        ("imagenet_a", "imagenet-a", ONLY_A),
        ("imagenet_r", "imagenet-r", ONLY_R),
        ("imagenet_sketch", "sketch", WNIDS[:4]),
    ):
        expected = [WNIDS.index(wnid) for wnid in classes]
        assert labels(name, unpacked / folder) == expected
        assert open_set(name, unpacked / folder).classes == tuple(WNIDS)
    fails(
        "has several sets; give one of .*imagenet-a .*imagenet-r .*sketch",
        "imagenet_sketch",
        unpacked,
    )
    fails(
        rf"imagenet-r isn't imagenet_a: 4 classes, {ONLY_R[0]}, .* none of its 200",
        "imagenet_a",
        unpacked / "imagenet-r",
    )
    assert open_set("imagenet_a", unpacked / "imagenet-a" / ONLY_A[0]) is None
    assert open_set("imagenet_minival", unpacked / "imagenet-a") is None


def test_imagenet_v2_s_folders_are_labels(tmp_path):
    """In order of text, 10 comes before 2."""
    top = tmp_path / "imagenetv2-top-images-format-val"
    write_images(top, ["2/a.jpeg", "10/b.jpeg", "999/c.jpeg", "2/d.jpeg"])
    for root in (tmp_path, top):
        assert sorted(labels("imagenet_v2:topimages", root)) == [2, 2, 10, 999]
        # Nothing in it but its folder's name tells which of the three it is.
        assert open_set("imagenet_v2", root) is None
    write_images(tmp_path / "imagenetv2-matched-frequency-format-val", ["0/a.jpeg", "1/a.jpeg"])
    assert labels("imagenet_v2", tmp_path) == [0, 1]
    write_images(top, ["1000/a.jpeg"])
    fails("class folder '1000', none of 0 to 999", "imagenet_v2:topimages", top)


@pytest.mark.parametrize("group", ["", "imagenet-c/weather/"])
def test_imagenet_c_s_folders(group, tmp_path):
    names = [f"{WNIDS[label]}/{name}" for label, name in zip(LABELS, VALIDATION, strict=True)]
    write_images(tmp_path, [f"{group}fog/2/{name}" for name in names])
    write_images(tmp_path, [f"{group}fog/3/{name}" for name in names[:3]])
    assert sorted(labels("imagenet_c", tmp_path, "/fog_2")) == sorted(LABELS)
    assert sorted(labels("imagenet_c", tmp_path, "/fog_3")) == sorted(LABELS[:3])
    assert open_set("imagenet_c", tmp_path, "/fog_1") is None
    wrong = tmp_path / f"{group}fog/3"
    (wrong / names[0]).rename(wrong / WNIDS[LABELS[1]] / VALIDATION[0])
    (wrong / names[0]).parent.rmdir()
    fails("1 of 3 images are in the folder of another class", "imagenet_c", tmp_path, "/fog_3")


def test_validation_and_reassessed_labels(tmp_path):
    """Next to each other, as on Kaggle with training images beside them, or in folders."""
    flat = write_images(tmp_path / "ILSVRC/Data/CLS-LOC/val", VALIDATION)
    write_images(flat.parent / "train", [f"{wnid}/{wnid}_1.JPEG" for wnid in WNIDS[:2]])
    for root in (tmp_path, flat.parent, flat):
        assert labels("imagenet", root) == LABELS
    fails("0 files real.json, and one is needed next to the validation", "imagenet_real", flat)
    sets = [[label] for label in range(1000)] * 50
    sets[:3] = [[], [7, 9], list(range(9))]
    (flat.parent / "real.json").write_text(json.dumps(sets))
    found = labels("imagenet_real", flat.parent)
    assert [each[each >= 0].tolist() for each in found] == sets[:6]
    assert {(each.shape, each.dtype) for each in found} == {((MOST_LABELS,), np.dtype(np.int32))}
    (flat.parent / "real.json").write_text(json.dumps(sets[1:]))
    fails("real.json can't be read: not 50,000 lists of labels", "imagenet_real", flat.parent)
    # Training images, and other sets, are not the validation images.
    assert open_set("imagenet", flat.parent / "train") is None
    (flat.parent / "train").rename(tmp_path / "images")
    fails("isn't imagenet2012: 2 of 2 images have names that", "imagenet", tmp_path / "images")
    fails("isn't imagenet_sketch: 6 of 6 images have names", "imagenet_sketch", flat)
