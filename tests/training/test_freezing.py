"""Frozen parameters and statistics keep their bits, and rates by depth are what a hand computes."""

import jax
import numpy as np
import pytest
from conftest import TINY

from configs import digits
from effnet_jax import parallel
from effnet_jax.errors import UserError
from effnet_jax.training import freezing, progressive, state, step, supervisor

STEPS = 3


@pytest.fixture(scope="module")
def start():
    """The config, and a state of a model, that every test changes copies of."""
    config = digits.get_config(TINY)
    config.model.num_classes = 10
    config.batch_size, config.optimizer.name, config.ema.decay = 16, "sgd", 0.5
    config.schedule.warmup_epochs = 0.0
    return config


def run(config, steps=STEPS, before=None):
    """The state after some steps, and the one before, both on the host."""
    mesh = parallel.data_mesh(jax.devices()[:1])
    model, optimizer, shapes = state.abstract_state(config, 160)
    if before is None:
        fresh = jax.jit(state.init_state, static_argnums=(0, 1, 2))
        before = jax.device_get(fresh(model, optimizer, 16, jax.random.key(0)))
    lowered = step.lower_train_step(model, shapes, config, 160, mesh)
    compiled, rng = lowered.compile(), np.random.default_rng(0)
    after = jax.device_put(before, parallel.replicated(mesh))
    for _ in range(steps):
        batch = {
            "image": rng.integers(0, 255, (16, 16, 16, 3), np.uint8),
            "label": rng.integers(0, 10, 16).astype(np.int32),
            "mask": np.ones(16, np.float32),
        }
        after, metrics = compiled(after, parallel.put_batch(batch, mesh), np.uint32(0))
        assert np.isfinite(float(metrics["weight_norm"]))
    return before, jax.device_get(after)


def changed(before, after):
    """The names of the arrays that differ in any bit."""
    old, new = freezing.flatten(before), freezing.flatten(after)
    return {name for name in old if not np.array_equal(old[name], new[name])}


def test_frozen_parts_keep_their_bits_and_have_no_optimizer_state(start):
    config = start.copy_and_resolve_references()
    config.fine_tune.freeze = "stem..stage3 head/conv/.*"
    config.fine_tune.batch_norm = "frozen_below"
    before, after = run(config)
    still = freezing.frozen(config.fine_tune, before.params)
    assert {name.partition("/")[0] for name in still} == {
        "stem",
        "stage1",
        "stage2",
        "stage3",
        "head",
    }
    for old, new in ((before.params, after.params), (before.ema["params"], after.ema["params"])):
        assert changed(old, new) == freezing.flatten(old).keys() - still
    # The head is frozen in part, so that its statistics move.
    for old, new in (
        (before.batch_stats, after.batch_stats),
        (before.ema["batch_stats"], after.ema["batch_stats"]),
    ):
        moved = {name.partition("/")[0] for name in changed(old, new)}
        assert moved == {"stage4", "stage5", "stage6", "head"}
    traces = [x for x in jax.tree.leaves(after.opt_state) if np.ndim(x)]
    assert len(traces) == len(freezing.flatten(after.params)) - len(still)
    (line,) = freezing.describe(config.fine_tune, after.params)
    assert "BatchNorm keeps its statistics in stem, stage1, stage2, stage3" in line
    config.fine_tune.batch_norm = "train"
    (line,) = freezing.describe(config.fine_tune, after.params)
    assert "move in frozen parts too: config.fine_tune.batch_norm=frozen keeps them" in line


def test_the_head_alone_comes_first_and_then_all_with_a_fresh_momentum(start):
    config = start.copy_and_resolve_references()
    config.fine_tune.head_epochs, config.epochs = 1.0, 3.0
    first, second = progressive.stages(config, 160)
    assert (first.last, second.last) == (10, 30)
    before, middle = run(first.config)
    assert changed(before.params, middle.params) == {"classifier/bias", "classifier/kernel"}
    assert not changed(before.batch_stats, middle.batch_stats)
    trace = {n: np.abs(x).max() for n, x in freezing.flatten(middle.opt_state[1][0].trace).items()}
    assert {name for name, most in trace.items() if most} == {
        "classifier/bias",
        "classifier/kernel",
    }
    _, after = run(second.config, before=middle)
    assert changed(middle.params, after.params) == freezing.flatten(middle.params).keys()
    assert int(after.step) == 2 * STEPS


def test_rates_by_depth():
    params = {"stem": {"conv": {"kernel": 0}}, "stage1": {"block1": {"a": 0}, "block2": {"a": 0}}}
    params |= {"head": {"conv": {"kernel": 0}}, "classifier": {"kernel": 0}}
    config = digits.get_config().fine_tune
    config.head_rate, config.layer_decay = 10.0, 0.5
    assert freezing.flatten(freezing.rates(config, params)) == {
        "stem/conv/kernel": 0.0625,
        "stage1/block1/a": 0.125,
        "stage1/block2/a": 0.25,
        "head/conv/kernel": 0.5,
        "classifier/kernel": 10.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "stage9"}, "'stage9' matches no parameter; .* The parts are stem, stage1"),
        ({"freeze": "stem steem"}, r"'steem' matches no parameter; did you mean: stem\?"),
        ({"freeze": "stem,stage1"}, "separate parts by spaces, not commas"),
        ({"freeze": "stage4..stem"}, r"'stage4\.\.stem' is reversed; give stem\.\.stage4"),
        ({"freeze": "stem..stage9"}, "unknown part in config.fine_tune.freeze 'stage9'"),
        ({"freeze": "sten/.*"}, r"matches no parameter; did you mean: stem\?"),
        ({"freeze": "("}, "bad regular expression"),
        ({"freeze": ".*"}, "matches every parameter"),
        ({"batch_norm": "frozen_below"}, "and there is none; freeze one"),
        ({"freeze": "classifier", "head_epochs": 1.0}, "freezes the classifier, which is to be"),
        ({"head_epochs": 400.0}, r"head_epochs=400 is 4000 of the 300 .* of config\.epochs=30;"),
        ({"head_epochs": None, "head_steps": 300}, "head_steps=300 is 300 of .* never be trained"),
        ({"head_epochs": 0.01}, "head_epochs=0.01 is 0 of the 300 steps .*; give more, or 0"),
    ],
)
def test_what_can_not_be_frozen(start, changes, message):
    config = start.copy_and_resolve_references()
    config.epochs = 30.0
    config.fine_tune.update(changes)
    with pytest.raises(UserError, match=message):
        _, _, shapes = state.abstract_state(config, 160)
        freezing.describe(config.fine_tune, shapes.params)


def test_a_run_killed_while_the_head_alone_is_trained_ends_bit_equal(tiny, one_device, tmp_path):
    tiny.epochs, tiny.steps = None, 6
    tiny.fine_tune.head_epochs, tiny.fine_tune.head_steps = None, 4
    tiny.eval_epochs, tiny.eval_steps = None, 6
    tiny.checkpoint.save_epochs, tiny.checkpoint.save_steps = None, 2
    whole, _ = supervisor.train_and_evaluate(tiny, tmp_path / "whole")

    def kill(step, state, metrics):
        if step == 3:
            raise KeyError("killed")

    with pytest.raises(KeyError):
        supervisor.train_and_evaluate(tiny, tmp_path / "run", hooks=[kill])
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["2"]
    resumed, _ = supervisor.train_and_evaluate(tiny, tmp_path / "run")
    assert int(resumed.step) == 6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole))
