"""What is written for people survives crashes and restarts."""

import contextlib
import json
import resource

import pytest

from configs import digits
from effnet_jax import config as config_lib
from effnet_jax.errors import UserError
from effnet_jax.run import files, writers


@pytest.fixture
def record(tmp_path):
    return lambda config: writers.Records(tmp_path, config, ("a", "b"))


def test_going_on_drops_rows_after_the_checkpoint_and_half_written_ones(tmp_path, record):
    first = record(digits.get_config())
    first.open(0)
    for step in (10, 20, 30):
        first.write(step, {"epoch": step / 10, "train_loss": 1.0})
    first.write(20, {"epoch": 2.0, "ema_top1": 0.5, "raw_top1": 0.4})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "train_lo')
    second = record(digits.get_config())
    second.open(20)
    assert second.evaluation(20) == {"ema_top1": 0.5, "raw_top1": 0.4}
    assert second.evaluation(10) is None
    second.write(30, {"train_loss": 2.0})
    second.close()
    rows = writers.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 20, 30]
    assert rows[-1]["train_loss"] == 2.0
    starts = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert [run["start_step"] for run in starts] == [0, 20]


def test_a_changed_config_is_told_and_the_old_one_kept(tmp_path, record, capsys):
    config = digits.get_config()
    with contextlib.closing(record(config)) as first:
        first.open(0)
    config.optimizer.rmsprop.learning_rate = 0.5
    with contextlib.closing(record(config)) as second:
        second.open(7)
    assert "config.optimizer.rmsprop.learning_rate: 0.016 -> 0.5" in capsys.readouterr().err
    kept = json.loads((tmp_path / "config_until_step_7.json").read_text())
    assert kept["optimizer"]["rmsprop"]["learning_rate"] == 0.016
    assert config_lib.load(tmp_path).optimizer.rmsprop.learning_rate == 0.5


def test_csv_rows_add_up_and_never_mix_columns(tmp_path):
    path = tmp_path / "results" / "rows.csv"
    files.append_csv(path, [{"a": 1, "b": 2}])
    files.append_csv(path, [{"a": 3, "b": 4}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    with pytest.raises(UserError, match="other columns"):
        files.append_csv(path, [{"a": 5, "c": 6}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_rows_that_the_disk_refuses_are_written_later(tmp_path, capsys):
    workdir, away = tmp_path / "run", tmp_path / "away"
    workdir.mkdir()
    record = writers.Records(workdir, digits.get_config(), ("a", "b"))
    record.open(0)
    record.write(10, {"loss": 1.0})
    workdir.rename(away)
    for step in range(20, 200, 10):  # More than any queue is long.
        record.write(step, {"loss": 2.0})
    assert not workdir.exists()
    away.rename(workdir)
    record.write(200, {"loss": 3.0})
    record.close()
    assert [row["step"] for row in writers.read_metrics(workdir)] == list(range(10, 201, 10))
    assert capsys.readouterr().err.count("can't write metrics") == 1


def test_a_text_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows"
    files.append_whole(path, "first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.append_whole(path, "second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "first\n"
