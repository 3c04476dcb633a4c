"""Runs in a bucket on this machine: the same bits as on a disk, also when requests fail."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

from bucket_server import BUCKET, Bucket

import effnet_jax
from configs import digits
from effnet_jax import checkpoint, weights
from effnet_jax.run import buckets, manifest, workdirs, writers
from effnet_jax.tools import eval as eval_tool

MODEL = "resnet18,w=0.1,d=0.1,r=16"  # Compiles in less time than TINY.


@pytest.fixture(scope="module")
def server():
    """TensorStore reads the address of a server once in a process."""
    with Bucket() as server, pytest.MonkeyPatch.context() as patch:
        for key, value in server.environment.items():
            patch.setenv(key, value)
        yield server


@pytest.fixture
def bucket(server, monkeypatch):
    """The server without faults and with an empty bucket; libraries give up after a second."""
    server.reset()
    monkeypatch.setattr(buckets, "RETRIES", 1.0)
    monkeypatch.setattr(workdirs, "BEAT", 0.2)
    monkeypatch.setattr(workdirs, "PATIENCE", 1.0)
    yield server
    server.reset()


@pytest.fixture
def said(monkeypatch):
    lines = []
    for module in (workdirs, checkpoint, writers):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def experiment(epochs: float = 1.0):
    config = digits.get_config(MODEL)
    config.batch_size, config.eval_batch_size, config.log_steps = 64, 128, 5
    config.epochs, config.checkpoint.save_epochs = epochs, 0.5
    config.evaluations.val.weights = ("ema",)
    return config


def assert_same(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def rows(workdir) -> list[dict]:
    timed = {"images_per_second", "data_wait", "resident_mib", "seconds_left"}
    with workdirs.opened(workdir, writes=False) as place:
        found = writers.read_metrics(place.folder)
    return [{key: row[key] for key in row.keys() - timed} for row in found]


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, tmp_path, capsys):
    local, remote = tmp_path / "run", f"gs://{BUCKET}/some/run"
    expected, _ = effnet_jax.train(experiment(1.5), str(local))
    effnet_jax.train(experiment(1.0), remote)
    names = bucket.names()
    assert "some/run/run.lock" not in names
    steps = {name.split("/")[3] for name in names if "checkpoints" in name}
    assert steps == {"11", "22"}
    for step in steps:
        assert f"some/run/checkpoints/{step}/{manifest.NAME}" in names

    state, _ = effnet_jax.train(experiment(1.5), remote)  # Resumes.
    assert int(state.step) == 33
    assert_same(expected, state)
    assert rows(local) == rows(remote)
    top = {path.name for path in local.iterdir()} - {"checkpoints", "tensorboard"}
    names = bucket.names()
    assert {f"some/run/{name}" for name in top} <= {*names}
    assert sum(name.startswith("some/run/tensorboard/") for name in names) == 2  # Two starts.
    assert not [name for name in names if ".tmp" in name]

    # Whoever reads weights reads them there; a checkpoint by itself, and a copy of a file of them.
    for source in (remote, f"{remote}/checkpoints/33"):
        assert_same(weights.load(local).variables, weights.load(source).variables)
    weights.save(tmp_path / "w.safetensors", weights.load(local))
    buckets.Folder(remote).write("w.safetensors", (tmp_path / "w.safetensors").read_bytes())
    found = weights.load(f"{remote}/w.safetensors")
    assert_same(weights.load(local).variables, found.variables)

    results = []
    for workdir in (remote, local):
        eval_tool.main(eval_tool.PARSER.parse_args([f"--workdir={workdir}"]))
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert results[0] == results[1]
