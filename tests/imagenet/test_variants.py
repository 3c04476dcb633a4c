"""The evaluation sets of configs/evaluation, on made-up data in the form that TFDS gives them."""

import csv
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types
from typing import ClassVar

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT, TINY
from PIL import Image

from configs import digits, folder
from effnet_jax import config as config_lib
from effnet_jax import models, weights
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import sources
from effnet_jax.data.preprocess import normalize
from effnet_jax.errors import RunsFailed, UserError
from effnet_jax.imagenet import variants
from effnet_jax.imagenet.variants import choose_data, load_evaluation_set, open_source
from effnet_jax.imagenet.variants import evaluate_set as evaluate
from effnet_jax.metrics import choose_classes
from effnet_jax.report import paper
from effnet_jax.run import files
from effnet_jax.run.processes import ALONE
from effnet_jax.tools import eval as eval_tool
from effnet_jax.tools import reproduce as reproduce_tool
from effnet_jax.training import setup, supervisor
from effnet_jax.training.state import abstract_state
from effnet_jax.weights import folder as weights_folder
from tests.evaluating import evaluate_file, evaluate_run, random_values
from tests.tfds_sets import WNIDS, write_set

COUNT = 20  # Images; the last of three batches is half empty.


def images_and_logits(model, variables):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)
    config = digits.get_config().preprocess

    @jax.jit
    def apply(images):
        normalized = normalize(images, config.mean, config.std)
        return model.apply(variables, normalized, train=False)[0]

    return images, np.asarray(apply(images))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of an untrained network of 1000 classes, without its data; images; their logits."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits.get_config(TINY)
    config.eval_batch_size = 8
    config.data.source, config.data.name = "tfds", "imagenet2012"
    config.model.zero_classifier = False
    config = setup.resolve(config, tuple(WNIDS), 10_000)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda leaf: random_values(rng, leaf), abstract_state(config, 64)[2])
    config_lib.save(config, workdir / "config.json")
    (workdir / "classes.json").write_text(json.dumps(WNIDS))
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    state = state.replace(step=np.int32(0), ema=weights)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoints.save(0, state)
    return str(workdir), *images_and_logits(models.build(config.model), weights)


def shifted(best, classes, wrong):
    """Labels that are `best`, but for the images in `wrong` another of `classes`."""
    following = dict(zip(classes, np.roll(classes, -1), strict=True))
    return [int(following[b] if i in wrong else b) for i, b in enumerate(best)]


def test_imagenet_a_chooses_among_its_200_classes(run, tmp_path):
    workdir, images, logits = run
    classes = load_evaluation_set("imagenet_a").data.eval_classes
    chosen = np.array([WNIDS.index(name) for name in classes])
    best = chosen[logits[:, chosen].argmax(1)]
    # Or the test would not tell the rule from that of all classes.
    assert (best != logits.argmax(1)).sum() > COUNT // 2
    labels = shifted(best, chosen, range(5))
    write_set(tmp_path, "imagenet_a", "test", images, labels)
    table = tmp_path / "rows.csv"
    result = evaluate_run(workdir, data="imagenet_a", data_dir=str(tmp_path), csv=table)
    assert result["top1"] == 15 / 20 and result["count"] == COUNT
    ranks = (logits[:, chosen] > logits[np.arange(COUNT), labels][:, None]).sum(1)
    assert result["top5"] == pytest.approx((ranks < 5).mean())
    log_sum = np.log(np.exp(logits[:, chosen]).sum(1))
    loss = (log_sum - logits[np.arange(COUNT), labels]).mean()
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    with open(table, newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["data"] == "imagenet_a/test" and row["top1"] == "0.75"
    assert row["identity"].startswith(f"{COUNT} records ")


def test_the_table_is_checked_before_and_the_result_is_printed_without_it(
    run, tmp_path, monkeypatch, capsys
):
    workdir, images, _ = run
    write_set(tmp_path, "imagenet_a", "test", images[:1], [6])
    flags = [f"--workdir={workdir}", "--data=imagenet_a", f"--data_dir={tmp_path}", "--csv"]
    args = eval_tool.PARSER.parse_args([*flags, str(tmp_path / "rows.csv")])
    args.processes = ALONE

    def evaluated(*_):
        monkeypatch.setattr(files, "append_whole", full)
        yield "imagenet_a", {"top1": 0.5, "top5": 1.0, "loss": 0.25, "count": 1}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(variants, "evaluate", evaluated)
    with pytest.raises(UserError, match=r"can't write to --csv=.*: No space left.*0\.5"):
        eval_tool.main(args)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["top1"] == 0.5
    monkeypatch.setattr(variants, "evaluate", None)
    (tmp_path / "rows.csv").write_text("top1,count\n0.5,1\n")
    with pytest.raises(UserError, match=r"other columns than these rows .*choose another --csv"):
        eval_tool.main(args)
    args.csv = pathlib.Path("/proc/none/rows.csv")
    with pytest.raises(UserError, match=r"can't write to --csv=/proc/none/rows\.csv: No such file"):
        eval_tool.main(args)


def test_a_set_is_the_same_from_tfds_and_from_its_authors_folders(run, tmp_path, capsys):
    workdir, images, logits = run
    classes = load_evaluation_set("imagenet_a").data.eval_classes
    chosen = np.array([WNIDS.index(name) for name in classes])
    labels = shifted(chosen[logits[:, chosen].argmax(1)], chosen, range(5))
    write_set(tmp_path, "imagenet_a", "test", images, labels)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "unpacked/imagenet-a" / WNIDS[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    results = [
        evaluate_run(workdir, data="imagenet_a", data_dir=str(folder))
        for folder in (tmp_path, tmp_path / "unpacked", tmp_path / "unpacked/imagenet-a")
    ]
    losses = [result.pop("loss") for result in results]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)
    assert results[1] == results[2] == results[0] and results[0]["top1"] == 15 / 20
    assert "imagenet_a: 20 of 7,500 images" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"tfds build imagenet_r .*\nor give --data_dir=FOLDER"):
        evaluate_run(workdir, data="imagenet_r", data_dir=str(tmp_path))
    folder = tmp_path / "unpacked/imagenet-a"
    for wnid in classes:  # Without --data the folder's name may promise another metric.
        (folder / wnid).mkdir(exist_ok=True)
        Image.fromarray(images[0]).save(folder / wnid / "more.png")
    config = choose_data(weights.load(workdir), None, None, str(folder))
    assert len(open_source(config.data)) == 220
    assert "classes of imagenet_a; --data=imagenet_a chooses among" in capsys.readouterr().err


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    """A file of the run's averaged weights."""
    path = tmp_path_factory.mktemp("released") / "tiny.safetensors"
    weights.save(path, weights.load(run[0]))
    return str(path)


def test_a_file_of_weights_is_evaluated_as_its_run_is(run, released, tmp_path):
    """With the run's preprocessing, which is none of the defaults, and its classes."""
    _, images, logits = run
    labels = shifted(logits.argmax(1), range(1000), [3])
    write_set(tmp_path, "imagenet2012", "validation", images, labels)
    table = tmp_path / "rows.csv"
    options = {"data": "imagenet", "data_dir": str(tmp_path), "csv": table}
    result = evaluate_file(released, **options)
    log_sum = np.log(np.exp(logits).sum(1))
    loss = (log_sum - logits[np.arange(COUNT), labels]).mean()
    assert result.pop("loss") == pytest.approx(loss, rel=1e-4)
    top5 = (np.argsort(-logits, 1)[:, :5] == np.array(labels)[:, None]).any(1).mean()
    assert result.pop("top5") == pytest.approx(top5)
    right = np.array(labels) == logits.argmax(1)
    by_class = [right[np.array(labels) == label].mean() for label in set(labels)]
    assert result.pop("mean_per_class") == pytest.approx(np.mean(by_class))
    assert result == {"top1": 0.95, "count": COUNT, "step": None, "weights": released}
    with open(table, newline="") as file:
        (row,) = csv.DictReader(file)
    # How others trained is not known.
    assert (row["batch_size"], row["epochs"], row["seed"], row["step"]) == ("",) * 4


def test_a_folder_of_weights_is_evaluated_beside_what_was_published(
    run, released, tmp_path, capsys, monkeypatch
):
    _, images, logits = run
    labels = shifted(logits.argmax(1), range(1000), [3])
    write_set(tmp_path, "imagenet2012", "validation", images, labels)
    folder, table = tmp_path / "weights", tmp_path / "rows.csv"
    (folder / "efficientnetv2-s").mkdir(parents=True)
    # Names of the official Lite0 in PyTorch, of a folder as unpacked, and of nobody.
    known, v2_s = "efficientnet-lite0-57934424.safetensors", "efficientnetv2-s/model.safetensors"
    for name in (known, v2_s, "c.safetensors"):
        shutil.copy(released, folder / name)
    (folder / "damaged.pth").write_bytes(b"<html>")
    flags = [f"--weights={folder}", f"--data_dir={tmp_path}", f"--csv={table}"]

    def reproduce():
        with pytest.raises(RunsFailed, match=r"1 of 4 files failed: damaged\.pth"):
            reproduce_tool.main(reproduce_tool.PARSER.parse_args(flags))
        with open(table, newline="") as file:
            return list(csv.DictReader(file)), capsys.readouterr().out

    rows, text = reproduce()
    assert [row["file"] for row in rows] == ["c.safetensors", known, v2_s]
    found = {row["file"]: row for row in rows}
    assert {row["top1"] for row in rows} == {"0.95"} and rows[0]["count"] == str(COUNT)
    lite0, v2_s = found[known], found[v2_s]
    assert [float(lite0[key]) for key in ("published_top1", "difference")] == pytest.approx(
        [0.751, 0.199]
    )
    assert "lite/README.md" in lite0["source"] and float(v2_s["published_top1"]) == 0.839
    assert found["c.safetensors"]["published_top1"] == found["c.safetensors"]["difference"] == ""
    assert lite0["sha256"] == hashlib.sha256((folder / known).read_bytes()).hexdigest()
    assert f"imagenet has {COUNT} of the 50,000 images" in text
    assert "of 1 files: c.safetensors" in text and "damaged.pth failed: " in text
    assert re.search(r"efficientnet-lite0\S+ +│ 16 +│ 95.00 +│ 75.10 +│ \+19.90", text), text
    # Again: only a file that changed is evaluated.
    other = weights.load(released)
    other = other.replace(classes=other.classes[::-1])
    weights.save(folder / "c.safetensors", other, overwrite=True)
    evaluated = []
    own = reproduce_tool.evaluate
    monkeypatch.setattr(
        reproduce_tool, "evaluate", lambda path, *rest: evaluated.append(path) or own(path, *rest)
    )
    again, text = reproduce()
    assert [path.name for path in evaluated] == ["c.safetensors", "damaged.pth"]
    assert again[:3] == rows and len(again) == 4 and text.count("is done") == 2
    for cell in ('"0,95"', "nan", ""):  # Of a spreadsheet, or of a row that was cut.
        table.write_text(table.read_text().replace(",0.95,", f",{cell},", 1))
        with pytest.raises(UserError, match=r"rows\.csv, line 2: top1 is "):
            reproduce_tool.main(reproduce_tool.PARSER.parse_args(flags))
        table.write_text(table.read_text().replace(f",{cell},", ",0.95,", 1))


@pytest.mark.parametrize(
    ("name", "data", "resolution", "top1"),
    [
        # timm results/results-imagenet.csv and results-imagenet-a.csv; README of tensorflow/tpu.
        ("tf_efficientnet_b0.aa_in1k.safetensors", "imagenet", 224, "76.882"),
        ("tf_efficientnet_b0.aa_in1k/model.safetensors", "imagenet", 224, "76.882"),
        ("tf_efficientnet_b7.ns_jft_in1k.pth", "imagenet_a", 600, "67.187"),
        ("tf_efficientnet_b7.ns_jft_in1k.pth", "imagenet_a", 599, None),
        ("efficientnet_b1-c27df63c.pth", "imagenet", 240, "79.838"),
        ("efficientnet_b1_rwightman-bac287d4.pth", "imagenet", 240, "78.642"),
        ("ckptsaug/efficientnet-b7/model.ckpt.index", "imagenet", 600, "84.3"),
        ("ckpts/efficientnet-b0/model.ckpt.index", "imagenet", 224, "76.7"),
        ("noisy_student_efficientnet-b7/model.ckpt.index", "imagenet", 600, "86.9"),
        # Of three kinds, by its name.
        ("mine/efficientnet-b0/model.ckpt.index", "imagenet", 224, None),
        ("efficientnet-b0-355c32eb.pth", "imagenet", 224, None),
    ],
)
def test_published_accuracies_go_by_names(name, data, resolution, top1):
    names = weights_folder.names(pathlib.Path("downloads", name))
    assert paper.released(names, data, resolution).get("top1") == top1


def test_parts_of_one_set_of_weights_are_one_file_with_one_checksum(tmp_path):
    parts = ("a/model.safetensors.index.json", "a/model-00001-of-00002.safetensors")
    parts += ("b/model.ckpt.index", "b/model.ckpt.data-00000-of-00001", "b/checkpoint")
    for name in parts:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".cache").mkdir()
    for name in (".cache/model.safetensors", "._model.safetensors"):
        (tmp_path / name).touch()
    found = weights_folder.list_files(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [parts[0], parts[2]]
    before = list(map(weights_folder.checksum, found))
    for name in (parts[1], parts[3]):
        (tmp_path / name).write_text("other")
    assert not {*before} & {*map(weights_folder.checksum, found)}
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="no weights in"):
        weights_folder.list_files(tmp_path / "c")
    assert paper.load_options(["advprop/efficientnet-b0"]) == {"normalization": "inception"}
    assert paper.load_options(["noisy_student_efficientnet-l2_475"]) == {"resolution": 475}
    assert paper.load_options(["tf_efficientnet_b0.ap_in1k"]) == {}  # timm.by_name knows.


def test_a_folder_may_have_some_of_the_classes(run, released, tmp_path, elsewhere):
    """Its first class is not the network's first: labels go by name."""
    _, images, logits = run
    folder = tmp_path / "images"
    best = logits.argmax(1)
    names = [WNIDS[label] for label in best]
    wrong = min(set(best)) + 1
    names[0] = WNIDS[wrong] if wrong not in best else names[1]
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{number}.png")
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), f"--weights={released}", f"--data_dir={folder}"],
        **elsewhere,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["top1"], result["count"]) == (0.95, COUNT)
    count = len(set(names))
    assert f"the data has {count} of the network's 1000 classes" in done.stderr
    (folder / "cat").mkdir()
    Image.fromarray(images[0]).save(folder / "cat" / "0.png")
    with pytest.raises(UserError, match="not among the network's 1000: cat"):
        evaluate_file(released, data_dir=str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=tiny.safetensors"], "give --data=SET, or --data_dir=FOLDER"),
        (["--weights=tiny.safetensors", "--step=3"], "--workdir and --step apply to runs"),
        (["--weights=EMA", "--workdir=run"], "--weights=EMA is neither ema nor raw"),
        (["--workdir=run", "--model=b0"], "--model, --origin and --classes to weight files"),
        ([], "give --workdir=DIR"),
    ],
)
def test_flags_that_contradict_each_other_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        eval_tool.main(eval_tool.PARSER.parse_args(arguments))


def test_labels_go_to_the_outputs_of_their_names():
    class Two:
        classes = ("b", "d")
        labels: ClassVar = [0, 1, np.array([1, -1]), -1, 2]

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, index):
            return {"image": b"", "label": self.labels[index]}

        def describe(self, index):
            return f"record {index}"

    source, said = Two(), []
    assert sources.with_classes(source, ("b", "d"), "val", said.append) is source and not said
    found = sources.with_classes(source, ("background", "a", "b", "c", "d"), "val", said.append)
    assert said == ["split 'val' has 2 of the network's 5 classes"]
    assert (found[0]["label"], found[1]["label"], found[3]["label"]) == (2, 4, -1)
    assert found[2]["label"].tolist() == [4, -1]
    with pytest.raises(ValueError, match="label 2 is out of range"):
        found[4]
    with pytest.raises(UserError, match="not among the network's 3: d"):
        sources.with_classes(source, ("a", "b", "c"), "val")
    with pytest.raises(UserError, match=r"^the data has 1 classes that are not among"):
        sources.with_classes(source, ("a", "b", "c"), ".")
    # A crane is a bird and a machine: the label would be the last one's.
    with pytest.raises(UserError, match="the network has several classes of one name: b;"):
        sources.with_classes(source, ("b", "b", "d"), "val")


def test_imagenet_real_takes_any_label_and_leaves_out_images_without(run, tmp_path, capsys):
    workdir, images, logits = run
    order = np.argsort(-logits, axis=1)
    labels = [[] for _ in range(4)]
    labels += [[int(order[i, 900]), int(order[i, 0])] for i in range(4, 8)]
    labels += [[int(order[i, 4]), int(order[i, 5]), int(order[i, 600])] for i in range(8, 10)]
    labels += [[int(order[i, 5])] for i in range(10, COUNT)]
    name = "imagenet2012_real"
    write_set(tmp_path, name, "validation", images, labels, feature="real_label")
    result = evaluate_run(workdir, data="imagenet_real", data_dir=str(tmp_path))
    assert result == {"top1": 4 / 16, "top5": 6 / 16, "count": 16, "step": 0, "weights": "ema"}
    # The same images and labels as their authors ship them.
    folder = tmp_path / "unpacked/val"
    folder.mkdir(parents=True)
    for number, image in enumerate(images, 1):
        Image.fromarray(image).save(folder / f"ILSVRC2012_val_{number:08d}.png")
    (folder.parent / "real.json").write_text(json.dumps(labels + [[]] * (50_000 - COUNT)))
    for root in (folder.parent, folder):
        if root == folder:
            (folder.parent / "real.json").rename(folder / "real.json")
        assert evaluate_run(workdir, data="imagenet_real", data_dir=str(root)) == result
    said = capsys.readouterr().err
    assert f"evaluating on {folder}: 20 of 20 images, 1,000 classes: n01440764" in said


def test_imagenet_c_is_relative_to_the_reference_and_takes_whole_images(run, tmp_path):
    workdir, images, logits = run
    found = weights.load(workdir)
    found.preprocess["crop_padding"] = 16
    path = tmp_path / "few_corruptions.py"
    path.write_text(
        "from effnet_jax.imagenet.variants import load_evaluation_set\n\n\n"
        "def get_config():\n"
        "    config = load_evaluation_set('imagenet_c')\n"
        "    with config.unlocked():\n"
        "        config.corruptions = {'fog': 0.5, 'snow': 0.25}\n"
        "    config.severities = (1, 2)\n"
        "    return config\n"
    )
    best = logits.argmax(1)
    wrong = {"fog_1": 4, "fog_2": 6, "snow_1": 0, "snow_2": 10}
    name = "imagenet2012_corrupted"
    for part in list(wrong)[:2]:
        labels = shifted(best, range(1000), range(wrong[part]))
        write_set(tmp_path, name, "validation", images, labels, config=part)
    config = choose_data(found, config_lib.load(workdir), str(path), str(tmp_path))
    assert config.preprocess.crop_padding == 16 and config.preprocess.crop_rule == "whole"
    with pytest.raises(UserError) as error:
        evaluate(found, config, "ema")
    message = str(error.value)
    assert f"2 of 4 data sets can't be read: {name}/snow_1, {name}/snow_2." in message
    assert f"tfds build {name}/snow_1 --data_dir={tmp_path} --file_format=array_record" in message
    for part in list(wrong)[2:]:
        labels = shifted(best, range(1000), range(wrong[part]))
        write_set(tmp_path, name, "validation", images, labels, config=part)

    table = tmp_path / "rows.csv"
    result = evaluate(found, config, "ema", table)
    # fog: (0.2 + 0.3) / (2 * 0.5); snow: (0.0 + 0.5) / (2 * 0.25).
    assert result["mce"] == pytest.approx((0.5 + 1.0) / 2)
    assert result["error"] == pytest.approx({"fog": 0.25, "snow": 0.25})
    assert result["top1"] == pytest.approx(0.75)
    assert (result["count"], result["step"], result["weights"]) == (4 * COUNT, 0, "ema")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["data"] for row in rows] == [f"{name}/{part}/validation" for part in wrong]
    assert [float(row["top1"]) for row in rows] == [0.8, 0.7, 1.0, 0.5]


def test_a_set_is_looked_for_where_the_runs_data_was(run, tmp_path):
    found, config = weights.load(run[0]), config_lib.load(run[0])
    config.data.data_dir = str(tmp_path / "tfds")
    with pytest.raises(UserError) as error:
        evaluate(found, choose_data(found, config, "imagenet_r"), "ema")
    assert f"no directory {tmp_path}/tfds " in str(error.value)
    assert f"tfds build imagenet_r --data_dir={tmp_path}/tfds" in str(error.value)


def test_a_run_with_other_classes_is_refused(run, tmp_path):
    workdir, images, _ = run
    found = weights.load(workdir)
    found = found.replace(classes=[str(n) for n in range(1000)])
    write_set(tmp_path, "imagenet_a", "test", images[:1], [6])
    config = choose_data(found, config_lib.load(workdir), "imagenet_a", str(tmp_path))
    with pytest.raises(UserError, match="1000 classes that are not among the network's 1000"):
        evaluate(found, config, "ema")


def test_a_set_of_the_user_s_own_has_all_keys(tmp_path):
    path = tmp_path / "mine.py"
    for value in ("None", "ConfigDict({'data': {'name': 'x'}})"):
        path.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return {value}")
        with pytest.raises(UserError, match=r"mine\.py'.*get_config has to return evaluation_set"):
            load_evaluation_set(str(path))


def test_an_argument_that_a_set_does_not_take_is_told():
    with pytest.raises(UserError, match="'imagenet_a' takes no argument; got 'foo'"):
        load_evaluation_set("imagenet_a:foo")


def test_an_unknown_set_is_told_with_those_like_it():
    with pytest.raises(UserError, match="evaluation set 'imagnet_a'; did you mean: imagenet_a"):
        load_evaluation_set("imagnet_a")
    with pytest.raises(UserError, match=r"no evaluation set file nowhere/set\.py"):
        load_evaluation_set("nowhere/set.py")
    with pytest.raises(UserError, match="variant of imagenet_v2 'top'; did you mean: topimages"):
        load_evaluation_set("imagenet_v2:top")


SETS = sorted((ROOT / "configs" / "evaluation").glob("[!_]*.py"))


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_each_set_is_one_that_tfds_has(path):
    config = load_evaluation_set(path.stem)
    name, _, variant = config.data.name.partition("/")
    known = [each.name for each in tfds.builder_cls(name).BUILDER_CONFIGS]
    parts = [f"{each}_{level}" for each in config.corruptions for level in config.severities]
    # In TFDS four more corruptions follow the fifteen of the benchmark.
    assert set(parts) == set(known[: len(parts)])
    assert bool(known) == bool(parts or variant) and (not variant or variant in known)
    assert len(set(config.data.eval_classes)) in (0, 200)
    assert set(config.data.eval_classes) <= set(WNIDS)
    assert f"--data={path.stem}" in path.read_text()
    assert f"`{path.stem}`" in (ROOT / "docs" / "evaluation.md").read_text()


def test_another_folder_than_the_run_s_is_evaluated_whole(tmp_path):
    """The hold-out is a rule for the run's own data: it took 12 of 120 test images."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    for name in (
        "mine/cat",
        "mine/dog",
        "other/cat",
        "other/dog",
        "splits/val/cat",
        "splits/val/dog",
    ):
        (tmp_path / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    run, found = folder.get_config(TINY), types.SimpleNamespace(preprocess={})
    found.config, run.data.data_dir = run.model, str(tmp_path / "mine")

    def summary(name, run=run):
        data = choose_data(found, run, None, name and str(tmp_path / name)).data
        return sources.open_source(data, data.eval_split).summary(), data

    assert f"{tmp_path}/mine: 2 of 20 images" in summary(None)[0]
    assert "2 of 20 images" in summary("other/../mine")[0]
    for run_or_none in (run, None):
        text, data = summary("other", run_or_none)
        assert f"{tmp_path}/other: 20 of 20 images, 2 classes" in text
        assert data.name == "other" and data.exif == "apply"
        assert "20 of 20 images" in summary("splits", run_or_none)[0]


def test_a_hold_out_that_moved_since_the_training_is_reported(tmp_path, capsys):
    """More images in a folder without splits hold out others, which the run was trained on."""
    rng, run = np.random.default_rng(0), folder.get_config(TINY)
    run.data.data_dir, found = str(tmp_path), types.SimpleNamespace(preprocess={}, config=run.model)

    def save(numbers):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
            for number in numbers:
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")

    def said(data_dir=None):
        config = choose_data(found, run, None, data_dir, trained)
        source = open_source(config.data)
        assert variants._count_trained_on(config, {"x": source}) == 0
        return capsys.readouterr().err

    save(range(10))
    trained = sources.identity(sources.open_source(run.data, "train"))
    assert said() == ""
    save(range(10, 15))
    assert "training images in" in said() and "have changed since the run (then 18 records" in said(
        str(tmp_path / "cat" / "..")
    )


def test_more_labels_than_fit_are_told(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    labels = [[1, 2], list(range(sources.MOST_LABELS + 1))]
    write_set(tmp_path, "many", "test", images, labels, feature="labels")
    write_set(tmp_path, "few", "test", images, [[1, 2], [1, 2]], feature="labels")
    source = sources.TfdsSource("few", str(tmp_path), "test", "labels")
    assert source[0]["label"].tolist() == [1, 2] + [-1] * (sources.MOST_LABELS - 2)
    with pytest.raises(ValueError, match="17 labels; at most 16"):
        [*sources.TfdsSource("many", str(tmp_path), "test", "labels")]
    with pytest.raises(UserError, match=r"needs 'image', and a 'label' \(config.data.label\) that"):
        sources.TfdsSource("many", str(tmp_path), "test")


def test_sets_of_labels_are_not_trained_on(tmp_path, tiny):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    write_set(tmp_path, "sets", "test", images, [[1], [2, 3]], feature="labels")
    tiny.data.update({"source": "tfds", "name": "sets", "label": "labels"})
    tiny.data.update({"data_dir": str(tmp_path), "train_split": "test", "eval_split": "test"})
    with pytest.raises(UserError, match=r"'labels' is a set of labels .* not trained on"):
        supervisor.train_and_evaluate(tiny, str(tmp_path / "workdir"))


def test_classes_that_the_data_lacks_are_told():
    assert choose_classes((), ("cat", "dog"), None) is None
    assert choose_classes(("dog",), ("cat", "dog"), 3).tolist() == [False, True, False]
    with pytest.raises(UserError, match="names 1 classes that are not among the data's 2: cow"):
        choose_classes(("cow", "dog"), ("cat", "dog"), None)
