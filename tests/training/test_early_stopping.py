"""Early stopping: when, what is left behind, and the same end after a kill."""

import json
import types

import jax
import numpy as np
import pytest

from effnet_jax import config as config_lib
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.errors import UserError
from effnet_jax.run import writers
from effnet_jax.run.processes import ALONE
from effnet_jax.training import supervisor
from effnet_jax.training.early_stopping import Patience
from effnet_jax.training.evaluations import Evaluations

EVERY = 4  # Steps between two evaluations.
# By evaluation. The best is the second: an equal score is no rise.
SCORES = dict(zip(range(EVERY, 100, EVERY), (0.25, 0.5, 0.5, 0.375, 0.75), strict=False))


class Killed(Exception):
    pass


@pytest.fixture
def config(quick, one_device, monkeypatch):
    """22 steps with an evaluation every 4, whose scores are SCORES, and one in between."""

    def evaluate(self, state, names, stopped):
        kinds = {"top1": SCORES.get(int(state.step), 0.0), "top5": 1.0, "count": 360}
        return {f"{name}/ema/{key}": value for name in names for key, value in kinds.items()}

    monkeypatch.setattr(Evaluations, "evaluate", evaluate)
    quick.epochs, quick.eval_epochs, quick.early_stopping.patience = 1.0, 0.2, 2
    quick.evaluations.val.weights = ("ema",)
    quick.evaluations.few = config_lib.evaluation(("ema",), 0.5, eval_split="test[:50]")
    return quick


def test_it_ends_where_the_best_is_two_evaluations_old_and_again_after_a_kill(
    config, tmp_path, monkeypatch, capsys
):
    state, scores = supervisor.train_and_evaluate(config, tmp_path / "whole")
    assert int(state.step) == 16
    told = "stopped early, after step 16 of 22: val/ema/top1 has not been above 50.00%, of step 8"
    assert told in capsys.readouterr().err
    assert scores.keys() >= {"val/ema/top1", "few/ema/top1"}  # As at the end of any run.
    assert writers.read_scores(tmp_path / "whole", 16) == scores
    with Checkpoints(tmp_path / "whole", config.checkpoint) as checkpoints:
        assert checkpoints.steps() == [12, 16]  # The first is as good as the best.
    # Again: it is finished.
    steps = []
    hook = lambda step, *_: steps.append(step)  # noqa: E731
    again, same = supervisor.train_and_evaluate(config, tmp_path / "whole", [hook])
    assert int(again.step) == 16 and same == scores and steps == []
    assert told in capsys.readouterr().err

    # Killed when the last scores are written and their checkpoint is not.
    save = Checkpoints.save

    def kill(self, step, *rest):
        if step == 16:
            monkeypatch.setattr(Checkpoints, "save", save)
            raise Killed
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", kill)
    with pytest.raises(Killed):
        supervisor.train_and_evaluate(config, tmp_path / "killed")
    resumed, same = supervisor.train_and_evaluate(config, tmp_path / "killed", [hook])
    assert steps[0] == 13 and same == scores
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_known_of_earlier_scores_ends_at_the_step_resumed_from(config, tmp_path):
    rows = [{"step": step, "val/ema/top1": score} for step, score in SCORES.items()]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 14, "train_loss": 1.0}])
    (tmp_path / writers.METRICS).write_text(text)
    run = types.SimpleNamespace(config=config, workdir=tmp_path, processes=ALONE)
    assert [bool(Patience(run, step).ended) for step in (8, 12, 16, 20)] == [
        False,
        False,
        True,
        False,
    ]
    config.early_stopping.patience = 3  # The same command with more patience goes on.
    assert not Patience(run, 16).ended


def test_patience_needs_a_metric(config):
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, "other/ema/top1"
    with pytest.raises(UserError, match="best_metric"):
        config_lib.validate(config)
    config.early_stopping.patience = 0
    config_lib.validate(config)
