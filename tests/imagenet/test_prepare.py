"""ImageNet prepared from tars, folders and a copy by TFDS, whole, and however often killed."""

import csv
import functools
import hashlib
import io
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from effnet_jax import cli
from effnet_jax import config as default
from effnet_jax.data import imagenet_names, sources
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import inputs, prepare, shards
from effnet_jax.run import files
from effnet_jax.tools import prepare_imagenet
from tests.imagenet import miniature, victim

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORIGINAL, DROP = shards.Settings(), shards.Settings(drop=True)


@pytest.fixture(scope="module", autouse=True)
def fork_server():
    """Starts processes that have all modules imported already; so it has to be the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([victim.__name__, "cv2", "tensorflow_datasets"])
    multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """A directory with the two tars, all of whose images are whole."""
    folder = tmp_path_factory.mktemp("tars")
    miniature.make_miniature(folder, truncated=False)
    return folder


@pytest.fixture(scope="module")
def prepared(tars, tmp_path_factory):
    """The data_dir that an uninterrupted run of two processes made of them."""
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare.prepare(tars, data_dir, ORIGINAL, subset=True, processes=2)
    return data_dir


def contents(data_dir: pathlib.Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in data_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(data_dir)): path.read_bytes() for path in files}


def records(data_dir: pathlib.Path, split: str) -> list[tuple[str, int, bytes]]:
    """Name, label and image of all records, read as TFDS reads them."""
    import tensorflow_datasets as tfds

    builder = tfds.core.read_only_builder.builder_from_files("imagenet2012", data_dir=data_dir)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [(r["file_name"].decode(), r["label"], r["image"]) for r in source]


def repaired(data_dir: pathlib.Path) -> list[list[str]]:
    with open(prepare.places(data_dir)[0] / "repaired.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def run_tool(*arguments: str) -> None:
    prepare_imagenet.main(prepare_imagenet.PARSER.parse_args(list(arguments)))


def as_tfrecord(data_dir: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """A copy of a prepared data set that says it is stored as TFRecord; returns its folder."""
    shutil.copytree(data_dir, copy)
    info = prepare.places(copy)[0] / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    return info.parent


# --- The order, and minival -----------------------------------------------------------------------


def test_order_is_python_2_s():
    """By hand for four: 0.4166 * 4, 0.0102 * 3 and 0.8252 * 2 swap 3 with 1, 2 with 0, 1 with 1.

    The others were printed by Python 2.7.18, as was the digest:
    random.seed(12345); order = range(n); random.shuffle(order)
    """
    assert imagenet.shuffled(4) == [2, 3, 0, 1]
    assert imagenet.shuffled(10) == [1, 3, 9, 5, 8, 7, 2, 6, 0, 4]
    order = imagenet.shuffled(1_281_167)
    assert order[:5] == [365817, 1232993, 506854, 712286, 78453]
    digest = hashlib.sha256(",".join(map(str, order)).encode()).hexdigest()
    assert digest == "c7050684747527374a5b3d733b391ca10db949da2eb8f5e9bce8dd42e7113721"


def minival_images(images: int) -> int:
    bounds = imagenet.shard_bounds("train", images)
    return bounds[imagenet.minival_shards(len(bounds) - 1)]


def test_minival_holds_what_the_reference_s_does():
    assert minival_images(1_281_167) == 25022
    bounds = imagenet.shard_bounds("train", 1_281_167)
    assert len(bounds) == 1025
    assert bounds[20] == 25022
    # Where the script's second thread begins: an eighth of all images, rounded down.
    assert bounds[128] == 160145
    assert len(imagenet.shard_bounds("validation", 50_000)) == 129


@pytest.mark.parametrize("images", [8, 60, 1000, 12_811, 65_536, 128_116])
def test_minival_of_a_part_ends_with_a_shard(images):
    bounds = imagenet.shard_bounds("train", images)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == images
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert minival_images(images) in bounds
    assert 1 <= minival_images(images) <= images / 7


def test_classes_are_imagenet_s():
    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    assert list(imagenet.class_names()) == path.read_text().split()
    assert imagenet.class_names()[:2] == ("n01440764", "n01443537")
    titles = imagenet.titles()
    assert len(set(titles.values())) == len(titles) == 1000
    assert (titles["n02124075"], titles["n07920052"]) == ("Egyptian cat", "espresso")
    # The first validation image is a sea snake.
    assert imagenet.validation_label("ILSVRC2012_val_00000001.JPEG", "") == 65
    with pytest.raises(UserError, match=r"here: 'ILSVRC2012_val_00050001.JPEG' is no name"):
        imagenet.validation_label("ILSVRC2012_val_00050001.JPEG", "here")


# --- What is written ------------------------------------------------------------------------------


def test_records_are_the_images_in_the_tars(prepared):
    train, validation = miniature.make_images(truncated=False)
    files = {name: (wnid, data) for wnid in train for name, data in train[wnid].items()}
    found = records(prepared, "train")
    # Sorted, then shuffled as Python 2 would.
    assert [name for name, _, _ in found] == [sorted(files)[i] for i in imagenet.shuffled(60)]
    odd = {name for _, name, _, _ in repaired(prepared)}
    assert len(odd) == 2
    for name, label, data in found:
        wnid, original = files[name]
        assert imagenet.class_names()[label] == wnid
        assert (data == original) == (name not in odd)
    names = [name for name, _, _ in records(prepared, "validation")]
    assert names == sorted(validation)
    assert {n: d for n, _, d in records(prepared, "validation")} == validation


def test_minival_is_the_first_of_train(prepared):
    minival, train = records(prepared, "minival"), records(prepared, "train")
    assert len(minival) == minival_images(60) == 7
    assert minival == train[:7]
    assert records(prepared, "train[7:]") == train[7:]
    files = sorted(prepare.places(prepared)[0].glob("*-minival*"))
    assert [file.stat().st_nlink for file in files] == [2]  # Takes no room.


def test_minival_is_what_a_list_names(prepared, tars, tmp_path):
    """As val_split20.txt does, with or without folders; the other images keep their order."""
    names = [name for name, _, _ in records(prepared, "train")]
    chosen, path = sorted(names)[::6], tmp_path / "list.txt"
    path.write_text("\n".join([f"n1/{chosen[0]}", chosen[1][:-5], *chosen[2:]]) + "\n\n")
    run_tool(f"--from={tars}", f"--data_dir={tmp_path}", "--subset", f"--minival={path}")
    minival, train = records(tmp_path, "minival"), records(tmp_path, "train")
    assert sorted(name for name, _, _ in minival) == chosen
    assert train[:10] == minival
    assert train[10:] == [r for r in records(prepared, "train") if r[0] not in chosen]
    assert records(tmp_path, "validation") == records(prepared, "validation")
    # All of ImageNet: 20 and 1,004 files.
    bounds = imagenet.shard_bounds("train", 1_281_167, 25_022)
    assert (len(bounds), bounds[0], bounds[20], bounds[-1]) == (1025, 0, 25_022, 1_281_167)

    def fails(lines, message, subset=True):
        path.write_text("\n".join(lines))
        with pytest.raises(UserError, match=message):
            items = [imagenet.Item(name, 0, "", 0, 0) for name in names]
            imagenet.hold_out(items, imagenet.read_minival(path), subset)

    fails([*chosen, "cat.jpg"], r"'cat\.jpg' is no name such as n01440764_10026")
    fails([*chosen, "n01440764_1.JPEG"], "lists 1 images that are not in train: n01440764_1", False)
    fails(["n01440764_1"], "lists 0 of 60 images; 1 to 30 can be held out")
    fails(names, "lists 60 of 60 images; 1 to 30 can be held out")
    path.unlink()
    with pytest.raises(UserError, match="can't read --minival="):
        prepare.prepare(tmp_path, tmp_path / "out", ORIGINAL, minival=path)


def test_this_program_reads_it(prepared):
    source = sources.TfdsSource("imagenet2012", str(prepared), "minival")
    assert source.classes == imagenet.class_names()
    assert (len(source), source[0]["label"]) == (7, records(prepared, "minival")[0][1])


@pytest.mark.parametrize("kind", ["flat folder", "folder", "array_record"])
def test_every_input_gives_the_same_bytes(kind, prepared, tmp_path):
    if kind == "array_record":  # Also where what TFDS made it of lies next to it.
        root = tmp_path / "in"
        shutil.copytree(prepared, root)
        (root / "downloads/manual").mkdir(parents=True)
        (root / "downloads/manual/ILSVRC2012_img_val.tar").touch()
    else:
        root = miniature.make_folder(tmp_path / "in", truncated=False, flat=kind == "flat folder")
    prepare.prepare(root, tmp_path / "out", ORIGINAL, subset=True)
    expected, found = contents(prepared), contents(tmp_path / "out")
    if kind == "array_record":  # What was repaired once needs no second repair.
        name = "imagenet2012/5.1.0/repaired.csv"
        assert repaired(tmp_path / "out") == []
        del expected[name], found[name]
    assert found == expected


def test_folders_as_people_have_them(prepared, tmp_path, capsys):
    """Kaggle's archive from its top, validation/ of .jpg, and a class's tar left in train/."""
    top = tmp_path / "in"
    folder = miniature.make_folder(top / "ILSVRC/Data/CLS-LOC", truncated=False)
    for split in ("train/n01440764", "val"):
        (top / "ILSVRC/Annotations/CLS-LOC" / split).mkdir(parents=True)
    (top / "ILSVRC/ImageSets").mkdir()
    (folder / "test").mkdir()
    (folder / "val").rename(folder / "validation")
    for path in (folder / "validation").iterdir():
        path.rename(path.with_suffix(".jpg"))
    first, second, *_ = sorted((folder / "train").iterdir())
    first.with_suffix(".tar").touch()
    prepare.prepare(top, tmp_path / "out", ORIGINAL, subset=True)
    said = "".join(capsys.readouterr().err.split())  # Lines are wrapped.
    assert f"reading {folder / 'train'} and {folder / 'validation'}".replace(" ", "") in said
    assert records(tmp_path / "out", "train") == records(prepared, "train")
    expected = [(n.replace("JPEG", "jpg"), *rest) for n, *rest in records(prepared, "validation")]
    assert records(tmp_path / "out", "validation") == expected

    def fails(message):
        with pytest.raises(UserError, match=message):
            prepare.prepare(top, tmp_path / "other", ORIGINAL, subset=True)

    second.rename(second.with_suffix(".tar"))
    fails(rf"train has 1 tars of classes that are not unpacked, such as {second.name}.tar; unpack")
    (folder / "val").mkdir()
    fails(r"CLS-LOC has both val and validation; remove one of them")
    miniature.make_folder(top / "again/one", truncated=False)
    miniature.make_folder(top / "again/two", truncated=False)
    shutil.rmtree(top / "ILSVRC")
    fails(rf"in has several data sets; give one: {top}/again/one {top}/again/two")


def test_repairs(prepared):
    train, _ = miniature.make_images(truncated=False)
    originals = {name: data for wnid in train for name, data in train[wnid].items()}
    stored = {name: data for name, _, data in records(prepared, "train")}
    assert sorted(found for _, _, _, found in repaired(prepared)) == ["CMYK JPEG", "RGB PNG"]
    for _, name, done, _ in repaired(prepared):
        assert done == "repaired"
        image = Image.open(io.BytesIO(stored[name]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        difference = decode_image(stored[name]).astype(int) - decode_image(originals[name])
        assert np.abs(difference).mean() < 1


def test_sizes():
    photograph = miniature.photographs()[2].crop((0, 0, 500, 400))
    data = miniature.encode(photograph)
    smaller, found = shards.fit(data, shards.Settings("256"))
    assert found is None
    assert decode_image(smaller).shape == (256, 320, 3)
    worse, _ = shards.fit(data, shards.Settings("256", quality=30))
    assert len(worse) < len(smaller) < len(data)
    assert shards.fit(data, shards.Settings("512")) == (data, None)
    assert shards.fit(data, shards.Settings("original")) == (data, None)
    # Nearer to Pillow's mean over areas than where that begins 4 pixels further.
    pixels = Image.fromarray(decode_image(data))
    errors = [
        np.abs(decode_image(smaller) - np.asarray(image).astype(int)).mean()
        for image in (
            pixels.resize((320, 256), Image.Resampling.BOX),
            pixels.resize((320, 256), Image.Resampling.BOX, box=(4, 4, 500, 400)),
        )
    ]
    assert errors[0] < errors[1] / 2, errors
    grey = miniature.encode(photograph.convert("L"))
    assert shards.fit(grey, shards.Settings("384"))[0] != grey
    assert shards.fit(grey, ORIGINAL) == (grey, None)
    png = miniature.encode(photograph, "PNG")
    resized, found = shards.fit(png, shards.Settings("256"))
    assert (decode_image(resized).shape, found) == ((256, 320, 3), "RGB PNG")


# --- What is refused ------------------------------------------------------------------------------


def test_counts_of_a_part_are_refused(tars, tmp_path):
    message = r"train has 60 images, and ImageNet's has 1,281,167; no images of 995 of 1000 classes"
    with pytest.raises(UserError, match=message):
        prepare.prepare(tars, tmp_path, ORIGINAL)
    assert contents(tmp_path) == {}
    # Each class complete, but for one image.
    low, _ = imagenet.PER_CLASS["validation"]
    items = [
        imagenet.Item(f"{label} {n}", label, "", 0, 0) for label in range(1000) for n in range(low)
    ]
    imagenet.check("validation", items)
    with pytest.raises(UserError, match=r"49,999 images.*49 images of n01440764, where 50"):
        imagenet.check("validation", items[1:])


def test_checksums_are_compared_and_remembered(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "check", lambda split, items, subset: None)
    with pytest.raises(
        UserError, match=r"img_train.tar has the MD5 \w+ .*1d675b47d978889d74fa0da5"
    ):
        prepare.prepare(tars, tmp_path, ORIGINAL)
    assert contents(tmp_path) == {}
    for split, archive in list(imagenet.ARCHIVES.items()):
        md5 = hashlib.md5((tars / archive.name).read_bytes()).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVES, split, archive._replace(md5=md5))
    computed = []
    md5 = inputs.md5
    monkeypatch.setattr(inputs, "md5", lambda path: computed.append(path.name) or md5(path))
    monkeypatch.setattr(prepare, "_finish", lambda *_: sys.exit(3))
    for _ in range(2):
        with pytest.raises(SystemExit):
            prepare.prepare(tars, tmp_path, ORIGINAL)
    assert computed == [archive.name for archive in imagenet.ARCHIVES.values()]


@pytest.mark.parametrize("kind", ["early", "damaged", "inner"])
def test_a_broken_tar_is_refused(kind, tars, tmp_path):
    shutil.copytree(tars, tmp_path / "in")
    tar = tmp_path / "in" / "ILSVRC2012_img_train.tar"
    data = bytearray(tar.read_bytes())
    if kind == "early":
        del data[len(data) * 2 // 3 :]
        where = r"ends early: n\w+.tar, which begins at byte [\d,]+, needs"
    else:  # The header after the first inner tar, or the second header inside it.
        size = int(data[124:135], 8)
        first = int(data[512 + 124 : 512 + 135], 8)
        start = 512 + (size if kind == "damaged" else 512 + -(-first // 512) * 512)
        data[start : start + 8] = b"\xff" * 8
        where = rf"has a damaged header at byte {start:,}"
    tar.write_bytes(data)
    with pytest.raises(UserError, match=where) as error:
        prepare.prepare(tmp_path / "in", tmp_path / "out", ORIGINAL, subset=True)
    assert hashlib.md5(data).hexdigest() in str(error.value)
    assert imagenet.ARCHIVES["train"].md5 in str(error.value)
    assert contents(tmp_path / "out") == {}


def test_inputs_that_are_not_imagenet(tars, prepared, tmp_path):
    def fails(root, message):
        with pytest.raises(UserError, match=message):
            prepare.prepare(root, tmp_path / "out", ORIGINAL, subset=True)

    fails(tmp_path / "nowhere", "no directory")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", r"Looked for: ILSVRC2012_img_train.tar and .*train/WNID.*TFDS")
    shutil.copytree(tars, tmp_path / "one")
    (tmp_path / "one" / "ILSVRC2012_img_val.tar").unlink()
    fails(tmp_path / "one", "ILSVRC2012_img_val.tar is missing")
    folder = miniature.make_folder(tmp_path / "folder")
    (folder / "train" / "cats").mkdir()
    (folder / "train" / "cats" / "1.jpg").write_bytes(b"")
    fails(folder, r"train/cats: 'cats' is none of ImageNet's 1000 classes")
    shutil.copytree(prepared, tmp_path / "records")
    file = next((tmp_path / "records").glob("*/*/*-train*"))
    data = file.read_bytes()
    file.write_bytes(data[:5000] + bytes(1000) + data[6000:])
    fails(tmp_path / "records", rf"{file.name} is damaged: .*; copy it again")
    file.write_bytes(data[:100_000])
    fails(
        tmp_path / "records", rf"{file.name} has 100,000 bytes, and 0 of its . records can be read"
    )
    file.unlink()
    fails(tmp_path / "records", f"{file.name} is missing")


def test_names_of_files_state_their_class(prepared, tmp_path):
    """Validation images in shuffled folders, and a training image in another class's folder."""
    folder = miniature.make_folder(tmp_path / "in", truncated=False, flat=False)
    classes = sorted(path.name for path in (folder / "val").iterdir())
    shuffled = dict(zip(classes, classes[1:] + classes[:1], strict=True))
    for wnid in classes:
        (folder / "val" / wnid).rename(folder / "val" / f"{wnid}_")
    for wnid in classes:
        (folder / "val" / f"{wnid}_").rename(folder / "val" / shuffled[wnid])
    message = r"10 of 10 images are .* another class .*\.JPEG is of n\d{8}(, .*){4}, \.\.\.\. Move"
    with pytest.raises(UserError, match=message):
        prepare.prepare(folder, tmp_path / "out", ORIGINAL, subset=True)
    assert contents(tmp_path / "out") == {}
    data = default.get_config().data  # Training and eval.py read such folders as they are.
    data.update(source="folder", data_dir=str(folder), eval_split="val")
    with pytest.raises(UserError, match="10 of 10 images are in the folder of another class"):
        sources.open_source(data, "val")
    image = next((folder / "train" / classes[0]).iterdir())
    image.rename(folder / "train" / classes[1] / image.name)
    with pytest.raises(UserError, match=rf"1 of 60 images .*{image.name} is of {classes[0]}\. "):
        sources.open_source(data, "train")
    # Copies, crops and other formats keep the part of a name that states the class.
    stem = image.stem
    for name in (f"{stem} (1).JPEG", f"crop_{stem}.webp", "ILSVRC2012_val_00000001.webp"):
        images = [(folder, name) for folder in ("n01440764", "n01440764_tench", "fish n01440764")]
        with pytest.raises(UserError, match="2 of 2 images are in the folder of another class"):
            imagenet_names.check_names(images)
    assert imagenet_names.stated_class(f"n01440764_1 over {stem}.JPEG") is None  # Which is it?
    # Labels in a copy by TFDS are compared as well.
    items = [imagenet.Item(f"n01440764_{n}.JPEG", 1, "x", 0, 0) for n in range(8)]
    with pytest.raises(UserError, match="8 of 8 images are in the folder of another class"):
        imagenet.check("train", items, subset=True)
    # Own groups of ImageNet's files are nobody's mistake.
    for wnid in classes:
        (folder / "train" / wnid).rename(folder / "train" / f"group {wnid}")
    assert len(sources.open_source(data, "train")) == 60


def test_images_of_one_name_are_refused():
    items = [imagenet.Item("1.JPEG", n, f"train/{n}/1.JPEG", 0, 0) for n in range(8)]
    with pytest.raises(UserError, match=r"8 images of train are called 1.JPEG, .* WNID_NUMBER"):
        imagenet.check("train", items, subset=True)


def test_a_tfrecord_copy_is_to_be_converted(prepared, tmp_path):
    version = as_tfrecord(prepared, tmp_path / "copy")
    message = (
        r"stored as tfrecord, not as ArrayRecord.*:\n  tfds convert_format --num_workers=1 "
        rf"--out_file_format=array_record --dataset_version_dir={version}$"
    )
    with pytest.raises(UserError, match=message):
        sources.TfdsSource("imagenet2012", str(tmp_path / "copy"), "train")
    with pytest.raises(UserError, match=message):
        prepare.prepare(tmp_path / "copy", tmp_path / "out", ORIGINAL, subset=True)
    assert contents(tmp_path / "out") == {}
    # As that command leaves it: with both kinds of files, and a word of it in the metadata.
    info = version / "dataset_info.json"
    values = {**json.loads(info.read_text()), "alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(values))
    assert len(sources.TfdsSource("imagenet2012", str(tmp_path / "copy"), "train")) == 60
    prepare.prepare(tmp_path / "copy", tmp_path / "out", ORIGINAL, subset=True)
    assert records(tmp_path / "out", "train") == records(prepared, "train")


def test_a_disk_that_is_too_small(tars, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs .* GB and its disk has 0\.0 GB left"):
        prepare.prepare(tars, tmp_path, ORIGINAL, subset=True)


def test_a_disk_that_gets_full_is_told(tars, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"can't write .*-train.*: .*File too large"):
            prepare.prepare(tars, tmp_path, ORIGINAL, subset=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_finished_set_is_kept(tars, prepared):
    before = contents(prepared)
    with pytest.raises(UserError, match=r"5\.1\.0 already exists"):
        prepare.prepare(tars, prepared, ORIGINAL, subset=True)
    assert contents(prepared) == before


def test_bad_flags():
    for flag in ("--size=300", "--quality=0", "--processes=0"):
        with pytest.raises(UserError, match=flag.partition("=")[0]):
            run_tool("--from=a", "--data_dir=b", flag)


# --- Damaged images -------------------------------------------------------------------------------


def test_a_damaged_image_stops_or_is_dropped(tmp_path, monkeypatch):
    root = tmp_path / "in"
    miniature.make_miniature(root)
    wnid = miniature.wnids()[miniature.TRUNCATED % miniature.CLASSES]
    name = f"{wnid}_{miniature.TRUNCATED * 37}.JPEG"
    for processes in (1, 2):
        message = rf"{name} in .*ILSVRC2012_img_train.tar.* damaged image: .*--on_corrupt=drop"
        with pytest.raises(UserError, match=message):
            prepare.prepare(root, tmp_path / "out", ORIGINAL, subset=True, processes=processes)
    with monkeypatch.context() as patch:  # Stopped when it had dropped it, it isn't forgotten.
        patch.setattr(prepare, "_finish", lambda *_: sys.exit(3))
        with pytest.raises(SystemExit):
            prepare.prepare(root, tmp_path / "out", DROP, subset=True)
    with pytest.raises(UserError, match=message):
        prepare.prepare(root, tmp_path / "out", ORIGINAL, subset=True)
    made = prepare.prepare(root, tmp_path / "out", DROP, subset=True)
    assert [n for _, report in made for n, _ in report.dropped] == [name]
    stored = [file_name for file_name, _, _ in records(tmp_path / "out", "train")]
    files = sorted(n for wnid in miniature.make_images()[0].values() for n in wnid)
    assert stored == [files[i] for i in imagenet.shuffled(60) if files[i] != name]
    assert ["train", name, "dropped"] in [row[:3] for row in repaired(tmp_path / "out")]


def test_a_shard_of_nothing_but_damaged_images(tmp_path):
    root = miniature.make_folder(tmp_path / "in", truncated=False)
    for path in sorted((root / "val").iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:500])
    prepare.prepare(root, tmp_path / "out", DROP, subset=True)
    assert len(records(tmp_path / "out", "validation")) == 8
    assert len(sources.TfdsSource("imagenet2012", str(tmp_path / "out"), "validation")) == 8


# --- Stopped, and going on ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tars, fork_server):
    """Starts preparation in a process that has all modules imported already."""
    context = fork_server

    def begin(data_dir: pathlib.Path, processes: int = 1, last_event: int = 0):
        began, events = context.Event(), context.Value("i", 0)
        arguments = (tars, data_dir, began, processes, events, last_event)
        process = context.Process(target=victim.run, args=arguments)
        process.start()
        assert began.wait(60)
        process.events = events
        return process

    return begin


def check_goes_on(start, data_dir: pathlib.Path, prepared: pathlib.Path) -> None:
    """Runs what was killed again, to its end; the result is that of an uninterrupted run."""
    final, work = prepare.places(data_dir)
    finished = final.exists()
    process = start(data_dir)
    process.join()
    assert process.exitcode == (1 if finished else 0)  # Killed when it was just done.
    assert not work.exists()
    assert contents(data_dir) == contents(prepared)


def test_killed_at_ten_random_points_it_ends_in_the_same_bytes(start, prepared, tmp_path):
    whole = start(tmp_path / "whole")
    whole.join()
    assert contents(tmp_path / "whole") == contents(prepared)
    events = whole.events.value
    assert events > 100

    rng = random.Random(0)
    # The last few: the finished directory has its name, and the working one isn't gone yet.
    kills = [*rng.sample(range(1, events - 30), 6), *rng.sample(range(events - 30, events), 4)]
    for number, kill in enumerate(kills):
        data_dir = tmp_path / str(number)
        process = start(data_dir, last_event=kill)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if number % 2 and not prepare.places(data_dir)[0].exists():  # Killed twice.
            start(data_dir, last_event=rng.randrange(1, events - kill + 30)).join()
        check_goes_on(start, data_dir, prepared)


def test_killed_while_workers_write(start, prepared, tmp_path):
    def wait_for_shards(count: int, data_dir: pathlib.Path) -> None:
        deadline = time.monotonic() + 60
        while len(list(data_dir.glob("*/*/data/*"))) < count and time.monotonic() < deadline:
            time.sleep(0.001)

    # The whole group, as a scheduler does, then the first process alone, as a full memory may.
    for name, kill in (("group", os.killpg), ("first", os.kill)):
        process = start(tmp_path / name, processes=2)
        wait_for_shards(3, tmp_path / name)
        kill(process.pid, signal.SIGKILL)
        process.join()
        assert not prepare.places(tmp_path / name)[0].exists()
        check_goes_on(start, tmp_path / name, prepared)


@pytest.fixture
def half_prepared(tars, tmp_path, monkeypatch):
    """A data_dir where preparation stopped before the metadata."""
    monkeypatch.setattr(prepare, "_finish", lambda *_: sys.exit(3))
    with pytest.raises(SystemExit):
        prepare.prepare(tars, tmp_path, ORIGINAL, subset=True)
    monkeypatch.undo()
    return tmp_path


def test_other_settings_or_images_are_refused(half_prepared, tars, tmp_path_factory):
    before = contents(half_prepared)

    def refused(root, settings, message):
        with pytest.raises(UserError, match=rf"was begun with {message}\. Go on with the command"):
            prepare.prepare(root, half_prepared, settings, subset=True)

    refused(tars, shards.Settings("256"), "--size=original")
    refused(tars, shards.Settings(quality=80), "--quality=90")
    other = miniature.make_folder(tmp_path_factory.mktemp("other"), truncated=False)
    next((other / "val").iterdir()).unlink()
    refused(other, ORIGINAL, "other images or another --minival")
    assert contents(half_prepared) == before
    prepare.prepare(tars, half_prepared, ORIGINAL, subset=True)


def test_a_second_process_is_refused(half_prepared, tars):
    work = prepare.places(half_prepared)[1]
    holder = rf"preparation \(process {os.getpid()} on host {re.escape(socket.gethostname())}\)"
    message = rf"another {holder} is running in {work}; wait for it"
    with files.Lock(work / "lock"):
        with pytest.raises(UserError, match=message):
            run_tool(f"--from={tars}", f"--data_dir={half_prepared}", "--subset")
        with pytest.raises(UserError, match=message):
            sources.TfdsSource("imagenet2012", str(half_prepared), "train")


def test_reading_what_is_half_prepared_gives_the_command_that_goes_on(half_prepared, capsys):
    with pytest.raises(UserError, match=r"is only partly prepared in .* Continue with:\n") as error:
        sources.TfdsSource("imagenet2012", str(half_prepared), "train")
    command = shlex.split(str(error.value).partition("\n")[2])
    assert command[:2] == ["effnet-jax", "prepare_imagenet"]
    capsys.readouterr()
    run_tool(*command[2:], "--processes=1")
    output = capsys.readouterr()
    assert "going on: 16 of 16 shards are there" in output.err
    assert "repaired train" in output.out
    assert f"--config.data.data_dir={half_prepared}" in output.out


def test_a_ctrl_c_whose_exception_was_lost_is_heeded_all_the_same():
    class Collected:
        def __del__(self):  # Python ignores what is raised here, as in a collector's callback.
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with prepare.heeding_ctrl_c() as check:
        check()
        Collected()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_leaves_what_can_go_on_without_tensorflow(tars, prepared, tmp_path):
    arguments = (f"--from={tars}", f"--data_dir={tmp_path}", "--subset")
    command = [sys.executable, "-m", "effnet_jax", "prepare_imagenet", "--processes=2", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # It is ignored if the tests run in the background of a shell.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=heed, **pipes)
    # While the workers start, which takes a second: all their work takes less.
    while process.poll() is None and not list(tmp_path.glob("*/*/data")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED == 75, errors
    assert errors.endswith("stopped by Ctrl-C; the same command continues\n")
    assert "Traceback" not in errors
    code = (
        "import sys\n"
        "from effnet_jax.data import sources\n"
        "from effnet_jax.tools import prepare_imagenet as tool\n"
        f"tool.main(tool.PARSER.parse_args({[*arguments, '--processes=1']!r}))\n"
        f"sources.TfdsSource('imagenet2012', {str(tmp_path)!r}, 'train')[0]\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'tensorflow'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["[]"], result.stderr
    assert contents(tmp_path) == contents(prepared)
