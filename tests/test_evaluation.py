"""Evaluation: exact by hand, and the same from the loop and from eval.py."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from effnet_jax import parallel
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.evaluation import Evaluator, checkpoint_of, evaluate
from effnet_jax.training import loop


class Fixed:
    """A stand-in for a model: logits are a table, looked up by the image's first pixel."""

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

    def __getitem__(self, index):
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(buffer, "PNG")
        return {"image": buffer.getvalue(), "label": int(self._labels[index])}


@pytest.mark.parametrize("count", [100, 128, 7])
def test_metrics_equal_those_by_hand_when_the_batch_does_not_divide(tiny, count):
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(count, 8)), rng.integers(0, 8, count)
    tiny.eval_batch_size = 16
    tiny.preprocess.mean, tiny.preprocess.std = (0.0,) * 3, (1.0,) * 3
    evaluator = Evaluator(Fixed(table), tiny, Numbers(labels), 8, parallel.data_mesh())
    result = evaluator({}, {})
    order = np.argsort(-table, axis=1)
    log_p = table - np.log(np.exp(table).sum(1, keepdims=True))
    assert result["count"] == count
    assert result["top1"] == pytest.approx((order[:, 0] == labels).mean(), abs=1e-7)
    top5 = (order[:, :5] == labels[:, None]).any(1).mean()
    assert result["top5"] == pytest.approx(top5, abs=1e-7)
    assert result["loss"] == pytest.approx(-log_p[np.arange(count), labels].mean(), rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from configs import digits

    workdir = tmp_path_factory.mktemp("trained")
    config = digits.get_config("w=0.25,d=0.2,r=16")
    config.batch_size, config.epochs, config.eval_epochs = 64, 2.0, 1.0
    config.eval_batch_size = 128
    _, results = loop.train_and_evaluate(config, str(workdir))
    return workdir, results


def test_eval_py_equals_the_evaluation_in_the_loop(trained):
    workdir, results = trained
    environment = dict(os.environ)  # The same 8 devices as the loop had.
    for weights in ("ema", "raw"):
        process = subprocess.run(
            [sys.executable, str(ROOT / "eval.py"), f"--workdir={workdir}", f"--weights={weights}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        printed = json.loads(process.stdout.splitlines()[-1])
        assert list(printed) == ["top1", "top5", "loss", "count", "step", "weights"]
        expected = {key: results[f"{weights}_{key}"] for key in ("top1", "top5", "loss", "count")}
        assert printed == {**expected, "step": 44, "weights": weights}
        assert printed["count"] == 360


def test_an_older_checkpoint_by_its_step(trained):
    workdir, results = trained
    older = evaluate(checkpoint_of(str(workdir), step=22, weights="raw"))
    assert older["step"] == 22
    assert older["loss"] != results["raw_loss"]
    with pytest.raises(UserError, match="no checkpoint of step 23"):
        evaluate(checkpoint_of(str(workdir), step=23))


def test_data_with_other_classes_is_refused(trained, monkeypatch):
    workdir, _ = trained
    original = sources.open_source

    def other(config, split):
        source = original(config, split)
        source.classes = (*source.classes[:-1], "ten")
        return source

    monkeypatch.setattr(sources, "open_source", other)
    with pytest.raises(UserError, match="missing: 9; added: ten"):
        evaluate(checkpoint_of(str(workdir)))


def test_a_workdir_that_is_none_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no run in .*config\.json is missing"):
        evaluate(checkpoint_of(str(tmp_path)))


def test_jax_has_the_devices_the_tests_count_on():
    assert jax.device_count() == 8
