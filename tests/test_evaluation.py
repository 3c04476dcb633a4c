"""Evaluation: exact by hand, and the same from the loop and from eval.py."""

import csv
import json
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY
from flax.traverse_util import flatten_dict
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from configs import digits
from effnet_jax import config as config_lib
from effnet_jax import models, parallel, weights
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.evaluation import Evaluator, evaluate
from effnet_jax.run.processes import ALONE, Alone
from effnet_jax.run.workdirs import Workdir
from effnet_jax.tools import predict
from effnet_jax.training import setup
from effnet_jax.training.clock import Clock
from tests.evaluating import evaluate_run, random_values


class Fixed:
    """A stand-in for a model: logits are a table, looked up by the image's first pixel."""

    architecture = types.SimpleNamespace(resolution=8)

    def __init__(self, table):
        self._table = jnp.asarray(table, jnp.float32)

    def apply(self, variables, images, train):
        assert not train
        return self._table[jnp.round(images[:, 0, 0, 0] * 255).astype(int)], {}


class Numbers:
    """Image i is of pixel i and class labels[i]."""

    classes = tuple("abcdefgh")

    def __init__(self, labels):
        self._labels = labels

    def __len__(self):
        return len(self._labels)

    def summary(self):
        return f"{len(self)} images"

    def __getitem__(self, index):
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(buffer, "PNG")
        return {"image": buffer.getvalue(), "label": int(self._labels[index])}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("count", [100, 128, 7])
def test_metrics_equal_those_by_hand_when_the_batch_does_not_divide(tiny, count):
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(count, 8)), rng.integers(0, 8, count)
    tiny.eval_batch_size = 16
    tiny.preprocess.mean, tiny.preprocess.std = (0.0,) * 3, (1.0,) * 3
    evaluator = Evaluator(Fixed(table), tiny, Numbers(labels), parallel.data_mesh(), ALONE)
    result = evaluator({}, {})
    order = np.argsort(-table, axis=1)
    log_p = table - np.log(np.exp(table).sum(1, keepdims=True))
    assert result["count"] == count
    assert result["top1"] == pytest.approx((order[:, 0] == labels).mean(), abs=1e-7)
    top5 = (order[:, :5] == labels[:, None]).any(1).mean()
    assert result["top5"] == pytest.approx(top5, abs=1e-7)
    assert result["loss"] == pytest.approx(-log_p[np.arange(count), labels].mean(), rel=1e-5)
    predicted = order[:, 0]
    assert result["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    found, wrong = evaluator.outcomes, np.flatnonzero(predicted != labels)
    matrix = confusion_matrix(labels, predicted, labels=range(8))
    np.testing.assert_array_equal(found.counts, matrix)
    confidence = np.exp(log_p[wrong, predicted[wrong]])
    worst, confidence = wrong[np.argsort(-confidence)][:100], np.sort(confidence)[:-101:-1]
    np.testing.assert_array_equal(found.record[: len(worst)], worst)
    np.testing.assert_allclose(found.probability[: len(worst)], confidence, 1e-5)
    assert (found.probability[len(worst) :] == -1).all()
    np.testing.assert_array_equal(found.label[: len(worst)], labels[worst])
    np.testing.assert_array_equal(found.predicted[: len(worst)], predicted[worst])


def test_outputs_that_are_not_finite_are_no_result(tiny, monkeypatch):
    """Of NaNs argmax is the first class: top-1 was 10 %, and above top-5."""
    table = np.random.default_rng(0).normal(size=(20, 8))
    table[3:5, 2] = np.nan, np.inf
    tiny.eval_batch_size, tiny.data.eval_split = 16, "test"
    tiny.preprocess.mean, tiny.preprocess.std = (0.0,) * 3, (1.0,) * 3
    monkeypatch.setattr(models, "build", lambda config: Fixed(table))
    none = types.SimpleNamespace(variables={"params": {}, "batch_stats": {}}, step=1)
    none.classes, source = Numbers.classes, Numbers(np.zeros(20, int))
    with pytest.raises(UserError, match=r"x: the network's outputs are not finite for 2 of 20"):
        list(evaluate(none, tiny, {"x": source}, "ema", ALONE))
    with pytest.raises(UserError, match="not finite"):
        predict.best(np.full(8, np.nan), Numbers.classes, {}, 5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with random weights of steps 5 and 11, and how the loop evaluates the last."""
    workdir = tmp_path_factory.mktemp("trained")
    config = digits.get_config(TINY)
    config.eval_batch_size = 128
    run, rng = setup.prepare(config, Workdir(workdir), ALONE, Clock()), np.random.default_rng(0)
    run.write_files(0)
    with Checkpoints(workdir, run.config.checkpoint) as checkpoints:
        for step in (5, 11):
            state = jax.tree.map(lambda leaf: random_values(rng, leaf), run.shapes)
            state = state.replace(step=np.int32(step))
            checkpoints.save(step, state)
    return workdir, run.evaluations.evaluate(state, ["val"], lambda: False)


def test_eval_py_equals_the_evaluation_in_the_loop(trained, tmp_path):
    workdir, results = trained
    process = subprocess.run(  # With the same 8 devices as the loop.
        [sys.executable, str(ROOT / "eval.py"), f"--workdir={workdir}", f"--details={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    printed = json.loads(process.stdout.splitlines()[-1])
    keys = ["top1", "top5", "loss", "mean_per_class", "count"]
    assert list(printed) == [*keys, "step", "weights"]
    for which, found in (("ema", printed), ("raw", evaluate_run(workdir, which="raw"))):
        expected = {key: results[f"val/{which}/{key}"] for key in keys}
        assert found == {**expected, "step": 11, "weights": which}
        assert found["count"] == 360
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list("0123456789")
    assert sum(int(row["count"]) for row in rows) == 360
    assert sum(int(row["correct"]) for row in rows) == round(360 * printed["top1"])
    mean = np.mean([float(row["accuracy"]) for row in rows])
    assert mean == pytest.approx(printed["mean_per_class"], abs=1e-6)


def test_an_older_checkpoint_by_its_step(trained):
    workdir, results = trained
    older = evaluate_run(workdir, step=5, which="raw")
    assert older["step"] == 5
    assert older["loss"] != results["val/raw/loss"]
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        evaluate_run(workdir, step=7)


def test_a_checkpoint_copied_out_of_its_workdir_loads_by_itself(trained, tmp_path):
    workdir, _ = trained
    shutil.copytree(workdir / "checkpoints" / "5", tmp_path / "best")
    copy, original = (
        weights.load(path) for path in (tmp_path / "best", workdir / "checkpoints" / "5")
    )
    assert copy.step == original.step == 5 and copy.origin == "ours"
    assert copy.config.to_dict() == original.config.to_dict()
    assert (copy.preprocess, copy.classes) == (original.preprocess, original.classes)
    assert copy.classes == tuple("0123456789")
    copied, wanted = (flatten_dict(found.variables, sep="/") for found in (copy, original))
    assert copied.keys() == wanted.keys()
    assert all(copied[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_processes_that_read_other_weights_are_noticed(trained):
    """By the step, and by which weights of it."""
    workdir, _ = trained
    facts = []

    class Recording(Alone):
        def check_same(self, name, values, seconds):
            facts.append({key: str(value) for key, value in values().items()})

    for step, which in ((5, "raw"), (11, "raw"), (11, "ema")):
        evaluate_run(workdir, step, which, processes=Recording())
    first, second, third = facts
    assert {key for key in first if first[key] != second[key]} == {"step"}
    assert {key for key in second if second[key] != third[key]} == {"weights"}


def test_data_with_other_classes_is_refused(trained, monkeypatch):
    workdir, _ = trained
    original = sources.open_source

    def other(config, split):
        source = original(config, split)
        source.classes = (*source.classes[:-1], "ten")
        return source

    monkeypatch.setattr(sources, "open_source", other)
    with pytest.raises(UserError, match="1 classes that are not among the network's 10: ten"):
        evaluate_run(workdir)


def test_a_workdir_without_a_run_or_a_checkpoint_is_reported(trained, tmp_path):
    with pytest.raises(UserError, match=r"no run in .*config\.json is missing"):
        config_lib.load(tmp_path)
    for name in ("config.json", "classes.json"):
        shutil.copy(trained[0] / name, tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
        evaluate_run(tmp_path)


def test_jax_has_the_devices_the_tests_count_on():
    assert jax.device_count() == 8
