"""Where the time went: sums by hand, rows cut short, and a clock that gives every moment once."""

import pathlib
import time

import pytest
from rich.console import Console

from effnet_jax.report import finish
from effnet_jax.run import files
from effnet_jax.run.processes import Alone
from effnet_jax.training import clock as clocks
from effnet_jax.training.clock import Clock, Meter, Stragglers


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


def test_who_makes_the_others_wait_is_named_once_after_two_windows():
    class Four(Alone):
        others = (0.02, 0.01, 0.03)

        def share(self, value):
            return dict(enumerate((value, *self.others)))

    processes = Four()
    stragglers = Stragglers(processes)
    assert stragglers(0.02, 0.5) == ""
    processes.others = (0.02, 0.3, 0.03)
    assert stragglers(0.02, 0.5) == ""
    message = stragglers(0.02, 0.5)
    assert message.startswith("slow: process 2; 0.300 s of each step")
    assert "0.020 s is usual" in message
    assert stragglers(0.02, 0.5) == ""
    processes.others = (0.02, 0.05, 0.03)  # Twice as long, but a tenth of a step.
    assert stragglers(0.02, 0.5) == "no process is slow any more"
    assert Stragglers(Alone())(9.0, 10.0) == ""


def test_a_window_has_the_times_of_its_steps_and_the_histogram_has_all(tmp_path):
    clock = Clock()
    clock.open(tmp_path, 0)
    metrics = dict.fromkeys(("loss", "correct", "count", "grad_norm", "weight_norm"), 1.0)
    meter = Meter(1, clock)
    with clock.spent("step"):
        for step in range(1, 9):
            time.sleep(0.05 if step == 5 else 0.005)
            meter.add(step, metrics)
        with clock.spent("evaluation"):
            time.sleep(0.1)
        window = meter.window()
    clock.write()
    assert 0.05 <= window["step_seconds_max"] < 0.1
    assert 0.005 <= window["step_seconds"] < 0.05
    assert window["own_seconds"] >= 0.01  # Nothing waited for a device.
    counts = [row.get("step_times", {}) for row in files.read_rows(tmp_path / clocks.FILE)]
    assert sum(sum(each.values()) for each in counts) == 8
    console = Console(width=100)
    with console.capture() as captured:
        console.print(finish.step_table(files.read_rows(tmp_path / clocks.FILE)))
    assert "times of 8 steps" in captured.get()
