"""What is written for people survives crashes and restarts."""

import contextlib
import json

import pytest

from configs import digits
from effnet_jax import records
from effnet_jax.errors import UserError


@pytest.fixture
def record(tmp_path):
    return lambda config: records.Records(tmp_path, config, ("a", "b"))


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
    rows = records.read_metrics(tmp_path)
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
    assert records.read_config(tmp_path).optimizer.rmsprop.learning_rate == 0.5


def test_csv_rows_add_up_and_never_mix_columns(tmp_path):
    path = tmp_path / "results" / "rows.csv"
    records.append_csv(path, [{"a": 1, "b": 2}])
    records.append_csv(path, [{"a": 3, "b": 4}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    with pytest.raises(UserError, match="other columns"):
        records.append_csv(path, [{"a": 5, "c": 6}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"
