"""Where the time went: sums by hand, rows cut short, and a clock that gives every moment once."""

import json
import time

import pytest
from rich.console import Console

from effnet_jax.run import files
from effnet_jax.training import clock as clocks
from effnet_jax.training.clock import Clock


def row(moment: float, at: int, event: str | None = None, **seconds: float) -> dict:
    happened = {"event": event} if event else {}
    return {"time": moment, "step": at, **happened, "seconds": seconds}


# Checkpoints at steps 10 and 15, a roll-back, and killed after step 18.
FIRST = [
    row(100, 0, "start", start=10),
    row(130, 10, start=1, compile=9, data=2, step=18),
    row(137, 10, evaluation=4, checkpoint=3),
    row(148, 15, step=10, checkpoint=1),
    row(160, 20, data=1, step=11),
    row(162, 15, "rollback", rework=2),
    row(165, 18, step=3),
]
# Its checkpoint 15 could not be read. The next one came after 55 s, and took 20 s to start.
SECOND = [row(240, 10, "start", start=20), row(270, 20, compile=5, step=25)]


def test_what_came_after_the_checkpoint_that_a_run_went_back_to_is_rework():
    first = clocks.account(FIRST)
    parts = {"start": 11, "compile": 9, "data": 2, "step": 31, "evaluation": 4, "checkpoint": 4}
    assert first == {**parts, "rework": 14, "downtime": 0}
    assert sum(first.values()) == 165 - 90  # Every second is somewhere, and once.
    both = clocks.account(FIRST + SECOND)
    parts = {"start": 31, "compile": 14, "data": 2, "step": 43, "evaluation": 4, "checkpoint": 3}
    assert both == {**parts, "rework": 28, "downtime": 55}
    assert sum(both.values()) == 270 - 90


def test_the_table_has_the_share_of_each_part_without_the_time_between_two_starts(tmp_path):
    lines = [json.dumps(each) + "\n" for each in FIRST + SECOND]
    (tmp_path / clocks.FILE).write_text("".join(lines))
    console = Console(width=100)
    with console.capture() as captured:
        console.print(clocks.table(tmp_path))
    shown = captured.get()
    assert "goodput 34.4%: 2 start(s), 1 roll-back(s)" in shown  # 43 of 125 s.
    assert "22.4%" in shown  # Rework.
    assert "not running, between two starts" in shown
    assert "55.0" in shown


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
    assert clocks.account(rows)["step"] == pytest.approx(seconds["step"], abs=0.005)
    path.write_text(path.read_text()[:-10])  # As a machine leaves it that lost its power.
    clock = Clock()
    clock.open(tmp_path, 7)
    clock.close()
    assert [each.get("event") for each in files.read_rows(path)] == ["start", None, "start", None]


def test_a_full_disk_stops_no_run_and_the_next_row_has_what_could_not_be_written(tmp_path):
    clock = Clock()
    clock.open(tmp_path, 0)
    real, clock._file = clock._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with clock.spent("step"):
        time.sleep(0.02)
    clock.write()
    clock._file.close()
    clock._file = real
    clock.close()
    assert clocks.account(files.read_rows(tmp_path / clocks.FILE))["step"] >= 0.02
