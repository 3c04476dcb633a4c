"""Parquet files and WebDataset tars: every record once, random access, and refused files."""

import importlib.util
import io
import itertools
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from effnet_jax import config as default
from effnet_jax.data import parquet, pipeline, sources, webdataset
from effnet_jax.errors import UserError

COUNT, FILES = 25, 3
NAMES = ["cat", "dog", "emu"]


def encode(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [encode(index) for index in range(COUNT)]
PARTS = np.array_split(np.arange(COUNT), FILES)


def write_parquet(path, numbers, labels=None, names=NAMES, group=4, **columns):
    labels = [number % 3 for number in numbers] if labels is None else labels
    images = [{"bytes": IMAGES[number], "path": None} for number in numbers]
    table = pa.table({"image": images, "label": labels, **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    if names:
        info = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def write_tar(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def members(number, label=None):
    label = str(number % 3) if label is None else label
    return [(f"a.b/{number:03d}.png", IMAGES[number]), (f"a.b/{number:03d}.cls", label.encode())]


def write(kind, root):
    for part, numbers in enumerate(PARTS):
        if kind == "parquet":
            write_parquet(root / f"data/train-0000{part}-of-0000{FILES}.parquet", numbers)
        else:
            samples = itertools.chain(*map(members, numbers))
            write_tar(root / f"train-0000{part}.tar", samples)


def config_for(kind, root, **changes):
    config = default.get_config()
    config.data.update({"source": kind, "data_dir": str(root), "label_count": 3, **changes})
    config.batch_size, config.preprocess.flip = 8, False
    default.validate(config)
    return config


def refused(kind, root, message, split="train", **changes):
    with pytest.raises(UserError, match=message):
        sources.open_source(config_for(kind, root, **changes).data, split)


def record_of(batch):
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def written(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    write(request.param, root)
    return request.param, root


def test_each_record_once_an_epoch_on_any_number_of_processes(written):
    config = config_for(*written)
    source = sources.open_source(config.data, "train")
    assert source.classes == (tuple(NAMES) if written[0] == "parquet" else ("0", "1", "2"))
    for processes in (1, 2, 8):
        parts = [pipeline.train_batches(source, config, 8, p, processes) for p in range(processes)]
        made = [part[step] for step in range(25) for part in parts]
        stream = list(itertools.chain(*map(record_of, made)))
        labels = np.concatenate([batch["label"] for batch in made])
        for epoch in range(8):
            seen = stream[epoch * COUNT :][:COUNT]
            assert sorted(seen) == list(range(COUNT)) and seen != sorted(seen)
        np.testing.assert_array_equal(labels, np.array(stream) % 3)


def test_a_run_that_resumes_sees_the_same_batches(written):
    config = config_for(*written)
    source = sources.open_source(config.data, "train")
    steady = pipeline.train_batches(source, config, 8).read_ahead(config.data, 0, 8)
    source = pickle.loads(pickle.dumps(source))  # As for a worker process.
    late = pipeline.train_batches(source, config, 8).read_ahead(config.data, 5, 8)
    for one, other in zip(list(steady)[5:], late, strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])


def test_a_part_and_what_is_trained_on(written):
    data = config_for(*written).data
    train, val = (sources.open_source(data, f"train[{part}]") for part in (":80%", "80%:"))
    assert (len(train), len(val)) == (20, 5)
    assert [sources.open_source(data, "train")[20], val[0]["label"]] == [val[0], 20 % 3]
    training = data.copy_and_resolve_references()
    assert sources.count_trained_on(val, data, training, train) == 0
    assert sources.count_trained_on(val, data, training, sources.open_source(data, "train")) == 5
    assert "25 images, 3 classes" in train.summary()
    assert sources.identity(train) != sources.identity(val)
    refused(*written, r"split 'train\[oops", split="train[oops]")
    refused(*written, "no .* files of the split 'test'; it has .*train-00000", split="test")


def test_parquet_layouts_and_kinds_of_columns(tmp_path):
    numbers = range(6)
    for place in ("a/train/0000", "b/train", "c/data/train-00000-of-00001-0a1b2c3d"):
        write_parquet(tmp_path / f"{place}.parquet", numbers)
        source = sources.open_source(config_for("parquet", tmp_path / place[0]).data, "train")
        assert [source[i]["image"] for i in numbers] == IMAGES[:6]
        assert source.describe(4).startswith("row 4 of ")
    plain = pa.table({"img": IMAGES[:3], "kind": pa.array(["b", "a", "b"]).dictionary_encode()})
    (tmp_path / "d").mkdir()
    pq.write_table(plain, tmp_path / "d/train.parquet")
    data = config_for("parquet", tmp_path / "d", image="img", label="kind").data
    source = sources.open_source(data, "train")
    assert source.classes == ("a", "b") and source[2] == {"image": IMAGES[2], "label": 1}


def test_row_groups_that_are_too_large_are_refused_and_written_again(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    write_parquet(old / "train.parquet", range(COUNT), group=COUNT)
    monkeypatch.setattr(parquet, "HELD", 300)
    monkeypatch.setattr(parquet, "LARGEST", 1000)
    refused("parquet", old, "a row group .* are all read to get one of them.*docs/data.md")
    new.mkdir()
    file = pq.ParquetFile(old / "train.parquet")  # As in docs/data.md.
    with pq.ParquetWriter(new / "train.parquet", file.schema_arrow) as writer:
        for batch in file.iter_batches(4):
            writer.write_batch(batch)
    source = sources.open_source(config_for("parquet", new).data, "train")
    assert source.classes == tuple(NAMES) and not source.warnings()
    # Fewer groups are kept than there are, so every group is read again.
    assert [source[i]["image"] for i in (*range(COUNT), 0)] == [*IMAGES, IMAGES[0]]
    monkeypatch.setattr(parquet, "MANY", 3)
    assert "to read one image, all 4 of its row group are read" in source.warnings()[0]


def test_parquet_that_does_not_fit(tmp_path, monkeypatch):
    def case(name, **arguments):
        write_parquet(tmp_path / name / "train.parquet", range(3), **arguments)
        return "parquet", tmp_path / name

    columns = r"has the columns image, label, and no column config.data.label='kind'"
    refused(*case("a"), columns, label="kind")
    refused(*case("b"), r"column 'label' .* images must be encoded bytes", image="label")
    refused(*case("c", labels=[1.0, 2.0, 3.0]), "'label' .* is double; labels must be integers or")
    refused(*case("d", labels=[0, None, 1]), "1 of 3 rows .* no label .* the first is row 1")
    refused(*case("e", labels=[-1] * 3), "3 of 3 labels are outside 0 to 2: row 0 of .* has -1")
    kind, root = case("f", names=None)
    data = config_for(kind, root).data
    data.label_count = None
    with pytest.raises(UserError, match=r"row 0 of .* --config\.data\.label_count=10"):
        sources.open_source(data, "train")
    images = [{"bytes": IMAGES[0], "path": "x"}, {"bytes": None, "path": "y"}]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), root / "test.parquet")
    refused(kind, root, "row 1 of .*test.parquet has no image", split="test")
    write_parquet(root / "mixed/0.parquet", range(3))
    write_parquet(root / "mixed/1.parquet", range(3), labels=["a", "b", "c"], names=None)
    refused(kind, root, r"several kinds: text in .*1\.parquet, and integers with", split="mixed")
    (root / "lfs.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(kind, root, "lfs.parquet: it is a pointer of Git LFS", split="lfs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(kind, root, "needs pyarrow: pip install pyarrow")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_files_that_are_missing_are_numbered(kind, tmp_path):
    write(kind, tmp_path)
    first, middle = sorted(tmp_path.glob("**/train-*"))[:2]
    refused(kind, tmp_path, "no folder with", data_dir="")
    refused(kind, tmp_path / "none", "no folder .*none")
    ending = first.suffix
    if kind == "webdataset":
        assert len(sources.open_source(config_for(kind, tmp_path).data, ".")) == COUNT
        source = sources.open_source(config_for(kind, tmp_path).data, "train-{00001..00002}.tar")
        assert len(source) == COUNT - len(PARTS[0])
        middle.unlink()
        message = r"lacks 2 of the 4 files train-.*: train-00001\.tar, train-00003\.tar;"
        refused(kind, tmp_path, message, split="train-{00000..00003}.tar")
        for number in range(2):  # A total in the names shows without a pattern what is missing.
            first.with_name(f"all-{number}-of-3.tar").write_bytes(first.read_bytes())
        refused(kind, tmp_path, r"lacks 1 of the 3 files all-\*: numbers 2;", split="all")
        return
    middle.unlink()
    refused(kind, tmp_path, r"lacks 1 of the 3 files train-\*: numbers 1;")
    first.with_name(f"train-00000-of-00001{ending}").write_bytes(first.read_bytes())
    refused(kind, tmp_path, "of several sets, -of-1 and -of-3; keep one")
    write_parquet(tmp_path / "train/0.parquet", range(3))
    refused(kind, tmp_path, "several sets of files for the split 'train'")


def test_tars_with_json_are_indexed_once(tmp_path, monkeypatch):
    meta = [json.dumps({"kind": name}).encode() for name in ("dog", "cat")]
    pairs = [[(f"{n}.png", IMAGES[n]), (f"{n}.txt", b"-"), (f"{n}.json", meta[n])] for n in (0, 1)]
    write_tar(tmp_path / "train/0.tar", [*pairs[0], ("._0.png", b"-"), *pairs[1]])
    data = config_for("webdataset", tmp_path, label="kind").data
    first = sources.open_source(data, "train")
    monkeypatch.setattr(webdataset, "_make_index", None)
    source = sources.open_source(data, "train")
    assert source.classes == ("cat", "dog") and source[0] == {"image": IMAGES[0], "label": 1}
    assert source.describe(1) == f"1 in {tmp_path}/train/0.tar"
    assert source.summary() == first.summary() and "files left out: 2 (2 .txt)" in source.summary()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("0.png", b"")], r"1 of 1 samples .* no label \(\.cls.*the first, 0, has \.png"),
        ([("0.cls", b"1"), *members(1)], r"1 of 2 samples .* no image .* 0, has \.cls"),
        ([*members(0), *members(1, "cat")], "000 has an integer in .cls, a.b/001 has text in .cls"),
        ([*members(0), ("0.jpg", b""), ("0.json", b'{"label": 1}')], "has an integer in .json"),
        ([("0.jpg", b""), ("0.json", b'{"kind": 1}')], "has kind, but not 'label'"),
        ([("0.jpg", b""), ("0.json", b'{"label": [1]}')], r"is \[1\]; labels must be integers or"),
        ([("0.jpg", b""), ("0.json", b"{")], "can't read the label of 0 in"),
        ([*members(0), ("a.b/000.seg.png", b"")], r"several images, .png, .seg.png; choose one"),
        ([*members(0), *members(0)], r"000\.png twice"),
        ([*members(0, "7")], "1 of 1 labels are outside 0 to 2: a.b/000 in .* has 7"),
    ],
)
def test_tars_that_do_not_fit(samples, message, tmp_path):
    write_tar(tmp_path / "train.tar", samples)
    refused("webdataset", tmp_path, message)


def test_tars_that_are_damaged_or_of_several_kinds(tmp_path):
    path = tmp_path / "train-0.tar"
    write_tar(path, [*members(0), *members(1)])
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    broken = bytearray(whole)
    broken[whole.index(b"a.b/001.png")] ^= 1  # The header's checksum is now wrong.
    for damaged in (whole[:end], whole[: end - 700], broken, b"version https://git-lfs"):
        path.write_bytes(damaged)
        refused("webdataset", tmp_path, r"can't read .*train-0\.tar: ")
    path.write_bytes(whole)
    write_tar(tmp_path / "train-1.tar", members(2, "cat"))
    refused("webdataset", tmp_path, "several kinds: .*train-0.tar has an integer .*text in .cls")
    (tmp_path / "test-0.tar.gz").write_bytes(b"-")
    path.unlink()
    (tmp_path / "train-1.tar").unlink()
    refused("webdataset", tmp_path, "but has .tar.gz files, which have no random access")
