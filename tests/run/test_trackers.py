"""Metrics go to Weights & Biases and MLflow, where they are installed, and never block a run."""

import importlib.util
import threading
import time

import pytest

from effnet_jax.errors import UserError
from effnet_jax.run import trackers, writers
from effnet_jax.run.writers import Writer

ROWS = {10: {"epoch": 1.0, "train_loss": 2.0}, 20: {"epoch": 2.0, "train_loss": 1.5}}


def send(name, workdir):
    (writer,) = trackers.open_trackers([name], workdir, {"seed": 1, "model": {"base": "x"}})
    for step, row in ROWS.items():
        writer.scalars(step, row)
    writer.scalars(20, {"val/ema/top1": 0.5})
    writer.close()


def test_mlflow_has_the_rows_and_a_run_that_resumes_goes_on_in_its_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    trackers.check(["tensorboard", "mlflow"])
    workdir = tmp_path / "run"
    workdir.mkdir()
    send("mlflow", workdir)
    send("mlflow", workdir)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(each.step, each.value) for each in history] == [(10, 2.0), (20, 1.5)] * 2
    assert run.data.metrics["val/ema/top1"] == 0.5


def test_wandb_offline_has_the_rows_and_needs_a_key_online(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # Without a key.
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"no key .*WANDB_MODE=offline"):
        trackers.check(["wandb"])
    wandb.teardown()  # Forgets the settings that it has read.
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(["wandb"])
    send("wandb", tmp_path)
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 30  # Its own process may write a moment after it says that it has.
    while b"val/ema/top1" not in record.read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (tmp_path / "wandb_id.txt").read_text() in record.name


@pytest.mark.parametrize("name", trackers.KINDS)
def test_a_writer_without_its_package_is_refused_with_the_remedy(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{name}.* not installed: pip install"):
        trackers.check([name])
    trackers.check(["tensorboard"])


def test_a_server_that_hangs_or_fails_blocks_nothing_and_is_reported_once(monkeypatch, capsys):
    free, taken = threading.Event(), []

    class Server(Writer):
        def scalars(self, step, row):
            free.wait(60)
            taken.append(step)
            raise ConnectionError("connection reset")

    writer = trackers.Background(Server(), "server")
    for step in range(100):
        writer.scalars(step, {})
    assert not taken
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.01)
    writer.close()
    free.set()
    writer._thread.join(10)
    assert taken == list(range(100))
    shown = capsys.readouterr().err
    assert shown.count("can't send metrics to server: connection reset. The run goes on") == 1
    assert "did not accept all metrics" in shown


def test_tensorboard_is_one_of_several(tmp_path):
    writers.open_writers(tmp_path, 0, 40, tensorboard=False).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [writers.METRICS]
