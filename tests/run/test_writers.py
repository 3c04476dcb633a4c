"""What is written for people survives crashes and restarts."""

import concurrent.futures
import resource
import threading
import time

import pytest

from effnet_jax import csv_rows
from effnet_jax.errors import UserError
from effnet_jax.run import environment, files, writers

ROW = {
    "epoch": 1.0,
    "train_loss": 1.0,
    "images_per_second": 100.0,
    "data_wait": 0.1,
    "skipped_images": 0,
    "seconds_left": 60.0,
}


def test_resuming_drops_rows_after_the_checkpoint_and_half_written_ones(tmp_path):
    first = writers.open_writers(tmp_path, 0, 40)
    for step in (10, 20, 30):
        first.scalars(step, {**ROW, "epoch": step / 10})
    first.scalars(20, {"epoch": 2.0, "val/ema/top1": 0.5, "val/raw/top1": 0.4})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "train_lo')
    second = writers.open_writers(tmp_path, 20, 40)
    assert writers.read_scores(tmp_path, 20) == {"val/ema/top1": 0.5, "val/raw/top1": 0.4}
    assert writers.read_scores(tmp_path, 10) == {}
    second.scalars(30, {**ROW, "train_loss": 2.0})
    second.close()
    rows = writers.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 20, 30]
    assert rows[-1]["train_loss"] == 2.0


def test_csv_rows_add_up_and_never_mix_columns(tmp_path):
    path = tmp_path / "results" / "rows.csv"
    csv_rows.append_csv(path, [{"a": 1, "b": 2}])
    csv_rows.append_csv(path, [{"a": 3, "b": 4}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    with pytest.raises(UserError, match="other columns"):
        csv_rows.append_csv(path, [{"a": 5, "c": 6}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    path.write_text("a,b\n1,2")  # As an editor may leave it.
    csv_rows.append_csv(path, [{"a": 3, "b": 4}])
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    csv_rows.check_append(tmp_path / "new.csv", ["a"])
    assert not (tmp_path / "new.csv").exists()


def test_runs_of_one_name_that_start_in_the_same_second_are_two(tmp_path):
    """As of two sweeps that one command line starts, with one table."""
    for result in (1, 2):
        time.sleep(0.002)
        row = {"name": "seed=0", "result": result, "time": environment.describe_run()["time"]}
        csv_rows.merge_csv(tmp_path / "rows.csv", [row])
    assert len(csv_rows.read(tmp_path / "rows.csv")[1]) == 2


@pytest.mark.parametrize("change", ["\ufeff{}", "{};", "{},,"])
def test_a_file_that_a_spreadsheet_saved_is_named(tmp_path, change):
    path = tmp_path / "rows.csv"
    rows = "a;b\n1;2\n" if ";" in change else "a,b\n1,2\n"
    path.write_text("\n".join(change.format(line) for line in rows.splitlines()), "utf-8")
    with pytest.raises(UserError, match=r"rows\.csv has these columns, but in the form"):
        csv_rows.check_append(path, ["a", "b"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'a,b\n1,"2\n', "unexpected end of data; is a quotation mark missing"),
        ("a,b\n1,2\n".encode("utf-16"), "it is not UTF-8 text"),
    ],
)
def test_a_file_that_would_swallow_a_row_is_refused(tmp_path, data, message):
    (path := tmp_path / "rows.csv").write_bytes(data)
    with pytest.raises(UserError, match=rf"can't read .*rows\.csv: {message}"):
        csv_rows.append_csv(path, [{"a": 1, "b": 2}])
    assert path.read_bytes() == data


def test_evaluations_that_end_together_lose_no_row(tmp_path):
    """With one --csv that isn't there yet, some removed it again, or wrote a second header."""
    start = threading.Barrier(8)

    def evaluate(number):
        for turn in range(10):
            start.wait()
            csv_rows.check_append(tmp_path / f"{turn}.csv", ["number"])
            csv_rows.append_csv(tmp_path / f"{turn}.csv", [{"number": number}])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(evaluate, range(8)))
    for turn in range(10):
        header, *numbers = (tmp_path / f"{turn}.csv").read_text().split()
        assert header == "number" and sorted(numbers) == list("01234567")


def test_rows_that_the_disk_refuses_are_written_later(tmp_path, capsys):
    workdir, away = tmp_path / "run", tmp_path / "away"
    workdir.mkdir()
    record = writers.open_writers(workdir, 0, 200)
    record.scalars(10, ROW)
    workdir.rename(away)
    for step in range(20, 200, 10):  # More than any queue is long.
        record.scalars(step, ROW)
    assert not workdir.exists()
    away.rename(workdir)
    record.scalars(200, ROW)
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
