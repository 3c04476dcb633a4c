"""Loss that is not finite: back, past the data that did it; and the same end after being killed."""

import json
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from effnet_jax import evaluation
from effnet_jax.data import pipeline
from effnet_jax.errors import Interrupted, NonFiniteLossError, StoppedEarly, UserError
from effnet_jax.report import finish
from effnet_jax.run import files, signals, workers, writers
from effnet_jax.training import clock, supervisor
from effnet_jax.training import step as training_step

COMPILED = "/jax/core/compile/backend_compile_duration"


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture
def feed(monkeypatch):
    """Training batches by position: those that are bad, those that kill; and what was taken."""

    class Feed:
        bad, deadly, taken = set(), set(), []

    original = pipeline.Batches.read_ahead

    def read_ahead(self, config, start=0, stop=None, processes=0) -> Iterator[pipeline.Batch]:
        for position, batch in enumerate(original(self, config, start, stop, processes), start):
            if self._length is None:  # Not the evaluation's.
                if position in Feed.deadly:
                    Feed.deadly.remove(position)
                    raise Killed
                Feed.taken.append(position)
                if position in Feed.bad:
                    batch = {**batch, "mask": np.full_like(batch["mask"], np.nan)}
            yield batch

    monkeypatch.setattr(pipeline.Batches, "read_ahead", read_ahead)
    scores = {"top1": 0.5, "top5": 0.5, "loss": 1.0, "count": 360}
    monkeypatch.setattr(evaluation.Evaluator, "__call__", lambda *args, **options: scores)
    Feed.taken = []
    return Feed


@pytest.fixture
def config(quick, one_device):
    """22 steps, a checkpoint every 5."""
    quick.epochs = 1.0
    quick.checkpoint.save_epochs = 0.25
    quick.nonfinite.action = "rollback"
    return quick


def test_a_roll_back_skips_the_data_and_a_run_killed_around_it_ends_bit_equal(
    config, tmp_path, feed
):
    # The first is before any checkpoint. The last is met right after the roll-back before it, from
    # a checkpoint that knows nothing of that.
    feed.bad = {1, 12, 13}
    compiled = []

    def listen(event: str, seconds: float, **facts: str) -> None:
        if event == COMPILED:
            compiled.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state, _ = supervisor.train_and_evaluate(config, str(tmp_path / "whole"))
        assert sum("train_step" in name for name in compiled) == 1
        assert (int(state.step), int(state.skipped), int(state.rollbacks)) == (22, 4, 3)
        assert feed.taken[-12:] == list(range(14, 26))
        rows = writers.read_metrics(tmp_path / "whole")
        train = [row for row in rows if "train_loss" in row]
        assert [row["step"] for row in train] == [10, 20, 22]
        assert [row["skipped_steps"] for row in train] == [2, 4, 4]
        assert all(np.isfinite(row["train_loss"]) for row in train)
        rows = files.read_rows(tmp_path / "whole" / clock.FILE)
        events = [row for row in rows if row.get("event") == "rollback"]
        assert [(row["step"], row["bad_step"], row["skipped"]) for row in events] == [
            (0, 2, 2),
            (10, 11, 3),
            (10, 11, 4),
        ]
        assert "loss is nan at step 11" in events[-1]["reason"]

        # Between the last roll-back and the next checkpoint: the one before has skipped 2.
        feed.deadly = {17}  # At step 14.
        with pytest.raises(Killed):
            supervisor.train_and_evaluate(config, str(tmp_path / "killed"))
        compiled.clear()
        resumed, _ = supervisor.train_and_evaluate(config, str(tmp_path / "killed"))
        assert sum("train_step" in name for name in compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = files.read_rows(tmp_path / "killed" / clock.FILE)
    starts = [row["step"] for row in rows if row.get("event") == "start"]
    assert starts == [0, 10]
    assert finish.account(rows)["rework"] > 0


def test_more_roll_backs_than_allowed_stop_the_run(config, tmp_path, feed):
    feed.bad, config.nonfinite.max_rollbacks = {12, 14}, 1
    told = tmp_path / "told"
    config.notify.command = f"sh -c 'echo $0 >> {told}'"
    with pytest.raises(
        NonFiniteLossError, match=r"at step 12: stopped after 1 roll-back.*step 10$"
    ):
        supervisor.train_and_evaluate(config, str(tmp_path))
    assert told.read_text().split() == ["loss", "loss"]


def test_a_signal_while_the_step_is_compiled_stops_before_the_first(
    config, tmp_path, feed, monkeypatch
):
    original = training_step.make_train_step

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(training_step, "make_train_step", interrupted)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM before step 1; .* Run the same"):
        supervisor.train_and_evaluate(config, str(tmp_path))
    assert not feed.taken
    (row,) = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert row["start_step"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_the_compiler(config, tmp_path, feed, monkeypatch, number):
    """Nothing is there to save, and the workdir has no checkpoints and no lock afterwards."""
    compiler_ends, said = threading.Event(), []

    def compile(lowered):
        os.kill(os.getpid(), number)
        assert compiler_ends.wait(60)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    monkeypatch.setattr(signals, "say", said.append)
    ends = {
        signal.SIGTERM: (StoppedEarly, "stopped by SIGTERM at the start; checkpoints are as they"),
        signal.SIGINT: (KeyboardInterrupt, None),
    }
    error, message = ends[number]
    try:
        with pytest.raises(error, match=message):
            supervisor.train_and_evaluate(config, str(tmp_path / "run"))
        assert workers.has_abandoned()
    finally:
        compiler_ends.set()
    assert not said and not feed.taken
    assert not any((tmp_path / "run").iterdir())


def test_a_start_that_fails_leaves_nothing_in_the_workdir(config, tmp_path, feed):
    def fail():
        raise UserError("no weights there")

    with pytest.raises(UserError, match="no weights there"):
        supervisor.train_and_evaluate(config, str(tmp_path / "run"), init=fail)
    assert not any((tmp_path / "run").iterdir())
