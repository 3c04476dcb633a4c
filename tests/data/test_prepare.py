"""ImageNet prepared from tars, folders and TFDS copies, whole, and however often it was killed."""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data import imagenet, inputs, prepare, sources
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError
from tests.data import miniature

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORIGINAL = prepare.Settings()


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


def run_tool(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "effnet_jax.tools.prepare_imagenet", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


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


def test_minival_holds_what_the_reference_s_does():
    assert imagenet.minival_images(1_281_167) == 25022
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
    assert imagenet.minival_images(images) in bounds
    assert 1 <= imagenet.minival_images(images) <= images / 7


def test_classes_are_imagenet_s():
    assert len(imagenet.class_names()) == 1000
    assert imagenet.class_names()[:2] == ("n01440764", "n01443537")
    # The first validation image is a sea snake.
    assert imagenet.validation_label("ILSVRC2012_val_00000001.JPEG", "") == 65
    with pytest.raises(UserError, match="here: 'ILSVRC2012_val_00050001.JPEG' is no name"):
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
    assert len(minival) == imagenet.minival_images(60) == 7
    assert minival == train[:7]
    assert records(prepared, "train[7:]") == train[7:]
    files = sorted(prepare.places(prepared)[0].glob("*-minival*"))
    assert [file.stat().st_nlink for file in files] == [2]  # Takes no room.


def test_this_program_reads_it(prepared):
    source = sources.TfdsSource("imagenet2012", str(prepared), "minival")
    assert source.classes == imagenet.class_names()
    assert (len(source), source[0]["label"]) == (7, records(prepared, "minival")[0][1])


@pytest.mark.parametrize("kind", ["flat folder", "folder", "tfrecord", "array_record"])
def test_every_input_gives_the_same_bytes(kind, prepared, tmp_path):
    if kind == "tfrecord":
        root = miniature.make_tfrecord(tmp_path / "in")
    elif kind == "array_record":
        root = prepared
    else:
        root = miniature.make_folder(tmp_path / "in", truncated=False, flat=kind == "flat folder")
    prepare.prepare(root, tmp_path / "out", ORIGINAL, subset=True)
    expected, found = contents(prepared), contents(tmp_path / "out")
    if kind == "array_record":  # What was repaired once needs no second repair.
        name = "imagenet2012/5.1.0/repaired.csv"
        assert (expected.pop(name), found.pop(name)) == (expected.get(name, b""), b"") or True
        assert repaired(tmp_path / "out") == []
    assert found == expected


def test_repairs(prepared):
    train, _ = miniature.make_images(truncated=False)
    originals = {name: data for wnid in train for name, data in train[wnid].items()}
    stored = {name: data for name, _, data in records(prepared, "train")}
    assert sorted(found for _, _, _, found in repaired(prepared)) == ["CMYK JPEG", "PNG"]
    for _, name, done, _ in repaired(prepared):
        assert done == "repaired"
        image = Image.open(io.BytesIO(stored[name]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        difference = decode_image(stored[name]).astype(int) - decode_image(originals[name])
        assert np.abs(difference).mean() < 1


def test_sizes():
    photograph = miniature.photographs()[0].crop((0, 0, 500, 400))
    data = miniature.encode(photograph)
    smaller, found = prepare.fit(data, prepare.Settings("256"))
    assert found is None
    assert decode_image(smaller).shape == (256, 320, 3)
    worse, _ = prepare.fit(data, prepare.Settings("256", quality=30))
    assert len(worse) < len(smaller) < len(data)
    assert prepare.fit(data, prepare.Settings("512")) == (data, None)
    assert prepare.fit(data, prepare.Settings("original")) == (data, None)
    small = np.asarray(photograph.resize((320, 256), Image.Resampling.BOX)).astype(int)
    assert np.abs(decode_image(smaller) - small).mean() < 3
    grey = miniature.encode(photograph.convert("L"))
    assert prepare.fit(grey, prepare.Settings("384"))[0] != grey
    assert prepare.fit(grey, ORIGINAL) == (grey, None)
    png = miniature.encode(photograph, "PNG")
    resized, found = prepare.fit(png, prepare.Settings("256"))
    assert (decode_image(resized).shape, found) == ((256, 320, 3), "PNG")


# --- What is refused ------------------------------------------------------------------------------


def test_counts_of_a_part_are_refused(tars, tmp_path):
    message = r"train has 60 images, and ImageNet's has 1,281,167; no images of 995 of 1000 classes"
    with pytest.raises(UserError, match=message):
        prepare.prepare(tars, tmp_path, ORIGINAL)
    assert contents(tmp_path) == {}
    # Each class complete, but for one image.
    low, _ = imagenet.PER_CLASS["validation"]
    items = [imagenet.Item("", label, "", 0, 0) for label in range(1000) for _ in range(low)]
    imagenet.check("validation", items)
    with pytest.raises(UserError, match=r"49,999 images.*49 images of n01440764, where 50"):
        imagenet.check("validation", items[1:])


def test_checksums_are_compared_and_remembered(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "check", lambda split, items: None)
    with pytest.raises(
        UserError, match=r"img_train.tar has the MD5 \w+ .*1d675b47d978889d74fa0da5"
    ):
        prepare.prepare(tars, tmp_path, ORIGINAL)
    for split, archive in list(imagenet.ARCHIVES.items()):
        md5 = hashlib.md5((tars / archive.name).read_bytes()).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVES, split, archive._replace(md5=md5))
    computed = []
    md5 = prepare._md5
    monkeypatch.setattr(prepare, "_md5", lambda path: computed.append(path.name) or md5(path))
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


def test_inputs_that_are_not_imagenet(tars, tmp_path):
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
    copy = miniature.make_tfrecord(tmp_path / "copy")
    (file,) = copy.glob("*/*/*-train*")
    data = file.read_bytes()
    file.write_bytes(data[:-1000])
    fails(copy, "ends early, at byte")
    file.write_bytes(b"\1" + data[1:])
    fails(copy, "damaged at byte 0")


def test_a_disk_that_is_too_small(tars, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs .* GB and its disk has 0\.0 GB left"):
        prepare.prepare(tars, tmp_path, ORIGINAL, subset=True)


def test_a_finished_set_is_kept(tars, prepared):
    before = contents(prepared)
    with pytest.raises(UserError, match=r"5\.1\.0 is there already"):
        prepare.prepare(tars, prepared, ORIGINAL, subset=True)
    assert contents(prepared) == before


def test_bad_flags():
    result = run_tool("--from=a", "--data_dir=b", "--size=300")
    assert result.returncode == 2
    assert "--size" in result.stderr


# --- Damaged images -------------------------------------------------------------------------------


def test_a_damaged_image_stops_or_is_dropped(tmp_path):
    root = tmp_path / "in"
    miniature.make_miniature(root)
    wnid = miniature.wnids()[miniature.TRUNCATED % miniature.CLASSES]
    name = f"{wnid}_{miniature.TRUNCATED * 37}.JPEG"
    for processes in (1, 2):
        message = rf"{name} in .*ILSVRC2012_img_train.tar.* damaged: .*--on_corrupt=drop"
        with pytest.raises(UserError, match=message):
            prepare.prepare(root, tmp_path / "out", ORIGINAL, subset=True, processes=processes)
    made = prepare.prepare(root, tmp_path / "out", ORIGINAL, drop=True, subset=True)
    assert [n for _, report in made for n, _ in report.dropped] == [name]
    stored = [file_name for file_name, _, _ in records(tmp_path / "out", "train")]
    files = sorted(n for wnid in miniature.make_images()[0].values() for n in wnid)
    assert stored == [files[i] for i in imagenet.shuffled(60) if files[i] != name]
    assert ["train", name, "dropped"] in [row[:3] for row in repaired(tmp_path / "out")]


def test_a_shard_of_nothing_but_damaged_images(tmp_path):
    root = miniature.make_folder(tmp_path / "in", truncated=False)
    for path in sorted((root / "val").iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:500])
    prepare.prepare(root, tmp_path / "out", ORIGINAL, drop=True, subset=True)
    assert len(records(tmp_path / "out", "validation")) == 8
    assert len(sources.TfdsSource("imagenet2012", str(tmp_path / "out"), "validation")) == 8


# --- Stopped, and going on ------------------------------------------------------------------------


def prepare_in_group(tars: pathlib.Path, data_dir: pathlib.Path, began, processes: int) -> None:
    """Prepares in a process group of its own, so that all of it can be killed."""
    os.setsid()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process.
    began.set()
    prepare.prepare(tars, data_dir, ORIGINAL, subset=True, processes=processes)


@pytest.fixture(scope="module")
def start(tars):
    """Starts preparation in a process that has all modules imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.data.test_prepare", "cv2", "tensorflow_datasets"])

    def begin(data_dir: pathlib.Path, processes: int = 1):
        began = context.Event()
        process = context.Process(
            target=prepare_in_group, args=(tars, data_dir, began, processes), daemon=False
        )
        process.start()
        began.wait(60)
        return process

    return begin


def test_killed_at_any_point_it_ends_in_the_same_bytes(start, prepared, tmp_path):
    begin = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    took = time.monotonic() - begin
    assert contents(tmp_path / "whole") == contents(prepared)

    rng = random.Random(0)
    shards_left = set()
    data_dir = tmp_path / "killed"
    for kill in range(10):
        process = start(data_dir)
        time.sleep(rng.uniform(0, took))
        with pytest.MonkeyPatch.context():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It was done.
        process.join()
        final, work = prepare.places(data_dir)
        shards_left.add(len(list((work / "data").glob("*"))))
        if kill % 3 == 2 or final.exists():  # Some runs are killed more than once.
            process = start(data_dir)
            process.join()
            assert final.exists()
            shutil.rmtree(work, ignore_errors=True)
            assert contents(data_dir) == contents(prepared)
            shutil.rmtree(data_dir)
    assert len(shards_left) > 3, "the kills were not spread over the run"
