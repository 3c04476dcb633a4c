"""Stages: the reference's schedule, what each trains on, and a run killed inside the second."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK, ROOT, read_golden

from configs import digits, imagenet
from effnet_jax import config as config_lib
from effnet_jax import evaluation, models
from effnet_jax.checkpoint import FOLDER, Checkpoints
from effnet_jax.data import pipeline
from effnet_jax.errors import UserError
from effnet_jax.run import manifest, writers
from effnet_jax.training import loop, progressive, supervisor

COMPILED = "/jax/core/compile/backend_compile_duration"
GOLDEN = read_golden("v2_progressive.csv")


@pytest.fixture
def config(one_device):
    """Two epochs of 32 steps in all, in stages that end at 10, 21 and 32, on one device."""
    config = digits.get_config(QUICK)
    config.optimizer.name = "sgd"  # With it, and without cutmix, the three compile a fifth faster.
    config.data.train_split = "train[:512]"
    config.batch_size, config.eval_batch_size = 32, 512
    config.epochs, config.eval_epochs, config.checkpoint.save_epochs = 2.0, 2.0, 1.0
    config.log_steps = 8
    config.augment.policy = "randaugment"
    config.progressive.resolution = (16, 20, 24)
    config.progressive.randaugment_magnitude = (5.0, 7.5, 10.0)
    config.progressive.mixup_alpha = (0.0, 0.1, 0.2)
    config.progressive.dropout = (0.1, 0.2, 0.3)
    return config


@pytest.fixture
def taken(monkeypatch):
    """(position, side) of each training batch that a run takes."""
    taken, original = [], pipeline.Batches.read_ahead

    def read_ahead(self, config, start=0, stop=None, processes=0) -> Iterator[pipeline.Batch]:
        for position, batch in enumerate(original(self, config, start, stop, processes), start):
            if self._length is None:  # Not the evaluation's.
                taken.append((position, batch["image"].shape[1]))
            yield batch

    monkeypatch.setattr(pipeline.Batches, "read_ahead", read_ahead)
    return taken


def sides(first: int, last: int, skipped: int = 0) -> list[tuple[int, int]]:
    """What the steps after `first` take, to `last`."""
    side = lambda step: 16 if step < 10 else 20 if step < 21 else 24  # noqa: E731
    return [(step + skipped, side(step)) for step in range(first, last)]


def test_killed_inside_the_second_stage_a_run_ends_bit_equal(config, tmp_path, taken):
    compiled = []

    def listen(event: str, seconds: float, **facts: str) -> None:
        if event == COMPILED and "train_step" in facts["fun_name"]:
            compiled.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state, scores = supervisor.train_and_evaluate(config, str(tmp_path / "whole"))
        assert len(compiled) == 3
        assert taken == sides(0, 32)
        assert scores["val/ema/count"] == 360

        workdir, saved = tmp_path / "killed", tmp_path / "config.json"
        saved.write_text(config.to_json_best_effort())
        command = [sys.executable, str(ROOT / "tests" / "stuck_run.py"), saved, workdir, "18"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        end = time.monotonic() + 240
        with subprocess.Popen(command, env=environment) as process:
            while not manifest.exists(workdir / FOLDER / "16"):
                assert process.poll() is None
                assert time.monotonic() < end, process.kill()
                time.sleep(0.02)
            process.kill()

        compiled.clear()
        taken.clear()
        resumed, _ = supervisor.train_and_evaluate(config, str(workdir))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 2
    assert taken == sides(16, 32)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    losses = [
        [row["train_loss"] for row in writers.read_metrics(path) if "train_loss" in row]
        for path in (tmp_path / "whole", workdir)
    ]
    assert losses[0] == losses[1]


def test_a_roll_back_across_a_boundary_and_a_save_at_each(config, tmp_path, taken, monkeypatch):
    # Of the loop alone: steps that count, and are bad where their data is batch 11.
    built, saved = [], []

    class Step:
        def __init__(self, model, shapes, config, examples, mesh):
            built.append((model.architecture.resolution, model.dropout, config.augment.mixup_alpha))

        def compile(self):
            return self

        def __call__(self, state, batch, seed):
            keys = ("loss", "correct", "count", "grad_norm", "weight_norm")
            bad = 0.0 if taken[-1][0] != 11 else np.nan
            metrics = dict.fromkeys(keys, jnp.float32(1.0)) | {"loss": jnp.float32(bad)}
            return state.replace(step=state.step + 1), metrics

    save = Checkpoints.save

    def save_but_once(self, step, *arguments):
        saved.append(step)
        if step != 10:  # As where the disk was full.
            save(self, step, *arguments)

    scores = {"top1": 0.5, "top5": 0.5, "loss": 1.0, "count": 360}
    monkeypatch.setattr(evaluation.Evaluator, "__call__", lambda *args, **options: scores)
    monkeypatch.setattr(loop, "lower_train_step", Step)
    monkeypatch.setattr(Checkpoints, "save", save_but_once)
    config.nonfinite.action = "rollback"
    state, _ = supervisor.train_and_evaluate(config, str(tmp_path))
    stages = [(16, 0.1, 0.0), (20, 0.2, 0.1), (24, 0.3, 0.2)]
    assert built == [stages[0], stages[1], stages[0], stages[1], stages[2]]
    # From the start again, on the data after batch 11; the stages stay with the steps.
    assert taken == [*sides(0, 14), *sides(0, 32, skipped=12)]
    assert (int(state.step), int(state.skipped), int(state.rollbacks)) == (32, 12, 1)
    assert saved == [10, 10, 16, 21, 32]


def resolved(model: str):
    config = imagenet.get_config(model)
    config.model.num_classes = 1000
    return config


def test_the_schedule_is_the_references():
    for name in dict.fromkeys(row["model"] for row in GOLDEN):
        config = resolved(name.replace("efficientnet", ""))
        rows = [row for row in GOLDEN if row["model"] == name]
        stages = progressive.stages(config, 1_281_167)
        for row, stage in zip(rows, stages, strict=True):
            epochs = int(row["start_epoch"]), int(row["end_epoch"])
            assert (stage.start_epoch, stage.end_epoch) == epochs
            assert stage.last == epochs[1] * 312  # Steps an epoch: 1,281,167 // 4096.
            assert stage.resolution == int(row["image_size"])
            augment = stage.config.augment
            assert round(augment.mixup_alpha, 4) == float(row["mixup_alpha"])
            assert round(augment.cutmix_alpha, 4) == float(row["cutmix_alpha"])
            if augment.policy == "randaugment":
                assert round(augment.randaugment_magnitude, 4) == float(row["randaug_mag"])
            else:
                assert augment.policy == "autoaugment"
                assert row["randaug_mag"].startswith("AutoAugment")
    assert len(GOLDEN) == 32


def test_the_schedule_is_shown():
    lines = progressive.describe(progressive.stages(resolved("v2-m"), 1_281_167))
    assert len(lines) == 4
    assert lines[1] == (
        "stage 2 to epoch 175, step 54,600: 256 px, magnitude 8.333, mixup 0.0667, "
        "cutmix 0.0667, dropout 0.3"
    )
    assert progressive.describe(progressive.stages(resolved("b0"), 1_281_167)) == []


def test_steps_and_stages(config):
    assert [progressive.start_epoch(i, 3, 2.0) for i in range(3)] == [0, 2 / 3, 4 / 3]
    assert [progressive.start_epoch(i, 3, 3.7) for i in range(3)] == [0, 1, 2]
    config.model.num_classes = 10
    stages = progressive.stages(config, 512)
    assert [(stage.first, stage.last) for stage in stages] == [(0, 10), (10, 21), (21, 32)]
    after = [progressive.after(stages, step)[0].number for step in (0, 9, 10, 20, 21, 31, 32)]
    assert after == [1, 1, 2, 2, 3, 3, 3]
    # 1 more at 16 px, 11 at 20, 11 at 24.
    assert progressive.steps_left(stages, 9) == pytest.approx(1 + 11 * 1.25**2 + 11 * 1.5**2)
    assert progressive.steps_left(stages, 10) == progressive.steps_left(stages, 9) - 1
    assert progressive.steps_left(stages, 32) == 0
    assert models.coefficients(progressive.largest(config).model).resolution == 24
    config.progressive.update(dict.fromkeys(config_lib.PROGRESSIVE, ()))
    assert progressive.largest(config) is config
    (only,) = progressive.stages(config, 512)
    assert (only.first, only.last, only.config) == (0, 32, config)
    assert progressive.steps_left([only], 5) == 27


def test_bad_schedules_are_refused_before_the_workdir_is_touched(config, tmp_path):
    def fails(message, **changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=message):
            supervisor.train_and_evaluate(changed, str(tmp_path / "new"))
        assert not (tmp_path / "new").exists()

    key = "progressive.resolution"
    fails("different numbers of stages: resolution 2, randaugment_magnitude 3", **{key: (16, 24)})
    fails("resolution must be at least 1; got", **{key: (16, 20, "a")})
    fails("resolution must be whole pixels; got 20.5", **{key: (16, 20.5, 24)})
    fails("stage 1 of config.progressive: resolution 2 is below", **{key: (2, 20, 24)})
    fails("dropout must be at least 0 and at", **{"progressive.dropout": (0.1, 0.2, 1.0)})
    fails("magnitude must be .* 30; got", **{"progressive.randaugment_magnitude": (5.0, 7, 31)})
    fails("config.epochs=0.1 is 1 steps, too few for the 3 stages", epochs=0.1)
