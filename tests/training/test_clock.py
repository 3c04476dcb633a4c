"""Where the time went: sums by hand, rows cut short, and a clock that gives every moment once."""

import pathlib
import time

import pytest

from effnet_jax.report import finish
from effnet_jax.run import files
from effnet_jax.training import clock as clocks
from effnet_jax.training.clock import Clock


def test_the_clock_gives_every_moment_to_one_part_and_goes_on_over_a_row_cut_short(tmp_path):
    began = time.perf_counter()
    clock = Clock()
    clock.open(tmp_path, 0)
    with clock.spent("step"):
        time.sleep(0.02)
        with clock.spent("evaluation"):
            time.sleep(0.03)
        with pytest.raises(KeyError), clock.spent("data"):
            {}["missing"]
        clock.step = 7
        clock.write()
        time.sleep(0.01)
        seconds = clock.seconds()
        elapsed = time.perf_counter() - began
    assert seconds.total() == pytest.approx(elapsed, abs=0.005)
    assert seconds["evaluation"] >= 0.03
    assert 0.03 <= seconds["step"] < elapsed - 0.03 + 0.005
    clock.close()

    path = tmp_path / clocks.FILE
    rows = files.read_rows(path)
    assert [(each["step"], each.get("event")) for each in rows] == [
        (0, "start"),
        (7, None),
        (7, None),
    ]
    assert finish.account(rows)["step"] == pytest.approx(seconds["step"], abs=0.005)
    path.write_text(path.read_text()[:-10])  # As a machine leaves it that lost its power.
    clock = Clock()
    clock.open(tmp_path, 7)
    clock.close()
    assert [each.get("event") for each in files.read_rows(path)] == ["start", None, "start", None]


def test_a_full_disk_stops_no_run_and_the_next_row_has_what_could_not_be_written(tmp_path):
    clock = Clock()
    clock.open(tmp_path, 0)
    real, clock._path = clock._path, pathlib.Path("/dev/full")
    with clock.spent("step"):
        time.sleep(0.02)
    clock.write()
    clock._path = real
    clock.close()
    assert finish.account(files.read_rows(tmp_path / clocks.FILE))["step"] >= 0.02
