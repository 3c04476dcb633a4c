"""What is kept, what is found again, and what is said when it can't be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import SingleDeviceSharding

from configs import default
from effnet_jax import checkpoint
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.errors import UserError

HERE = SingleDeviceSharding(jax.devices()[0])


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple


def state(step: int, width: int = 4) -> State:
    return State(
        step=jnp.asarray(step, jnp.int32),
        params={"conv": {"kernel": jnp.full((3, width), float(step))}},
        batch_stats={"norm": {"mean": jnp.full((width,), -float(step))}},
        opt_state=({"nu": jnp.full((3, width), 0.5 * step)},),
    )


@pytest.fixture
def config():
    return default.get_config("b0").checkpoint


def save_all(workdir, config, scores: dict[int, float | None]) -> list[int]:
    with Checkpoints(workdir, config) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step), None if score is None else {"ema_top1": score})
        checkpoints.wait()
        return checkpoints.steps()


def test_newest_and_best_are_kept_also_after_a_restart(tmp_path, config):
    assert save_all(tmp_path, config, {1: None, 2: 0.9, 3: None, 4: 0.5, 5: 0.6}) == [2, 4, 5]
    assert save_all(tmp_path, config, {6: None, 7: 0.8, 8: None}) == [2, 7, 8]
    assert save_all(tmp_path, config, {9: 0.95, 10: None, 11: None}) == [9, 10, 11]


def test_the_newest_comes_back_exactly(tmp_path, config):
    save_all(tmp_path, config, {3: None, 7: None})
    with Checkpoints(tmp_path, config) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE)
        assert isinstance(restored, State)
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(7)), strict=True):
            np.testing.assert_array_equal(a, b)
        older = checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE, step=3)
        assert int(older.step) == 3
        part = checkpoints.restore({"params": jax.eval_shape(lambda: state(0)).params}, HERE)
        assert set(part) == {"params"}


def test_nothing_saved_is_none_and_a_wrong_step_lists_the_right_ones(tmp_path, config):
    with Checkpoints(tmp_path / "a", config) as checkpoints:
        assert checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE) is None
    save_all(tmp_path, config, {3: None, 7: None})
    with (
        Checkpoints(tmp_path, config, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint of step 5 .* there are: 3, 7"),
    ):
        checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE, step=5)


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path, config):
    # The next step writes into the buffers that are being saved, unless they were copied.
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    current = jax.device_put(jax.tree.map(lambda x: jnp.tile(x, 50_000), state(1).params), HERE)
    shapes = {"params": jax.eval_shape(lambda: current)}
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(1, {"params": current})
        for _ in range(10):
            current = bump(current)
        jax.block_until_ready(current)
        checkpoints.wait()
        saved = checkpoints.restore(shapes, HERE)
    assert np.unique(saved["params"]["conv"]["kernel"]).tolist() == [1.0]


def test_a_damaged_checkpoint_is_passed_over_and_put_aside(tmp_path, config):
    save_all(tmp_path, config, {3: None, 7: None})
    damaged = tmp_path / checkpoint.FOLDER / "7"
    data = [path for path in damaged.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert data
    for path in data:
        path.write_bytes(path.read_bytes()[:20])
    said = []
    with Checkpoints(tmp_path, config) as checkpoints:
        shapes = jax.eval_shape(lambda: state(0))
        with pytest.raises(UserError, match="can be read"):
            checkpoints.restore(shapes, HERE, step=7, say=said.append)
        assert damaged.is_dir()
        said.clear()
        assert int(checkpoints.restore(shapes, HERE, say=said.append).step) == 3
        assert len(said) == 1
        assert "checkpoint 7" in said[0]
        assert (tmp_path / "unreadable_checkpoints" / "7_0").is_dir()
        checkpoints.save(7, state(7))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 7]
        assert int(checkpoints.restore(shapes, HERE).step) == 7


def test_another_model_or_optimizer_is_told_apart(tmp_path, config):
    save_all(tmp_path, config, {3: None})
    with Checkpoints(tmp_path, config) as checkpoints:
        with pytest.raises(
            UserError, match=r"params/conv/kernel: checkpoint \(3, 4\), model \(3, 5\)"
        ):
            checkpoints.restore(jax.eval_shape(lambda: state(0, 5)), HERE)
        other = state(0).replace(params={"conv": {"weight": jnp.ones((3, 4))}})
        with pytest.raises(UserError, match=r"conv/kernel: checkpoint \(3, 4\), model absent"):
            checkpoints.restore(jax.eval_shape(lambda: other), HERE)
        other = state(0).replace(opt_state=({"mu": jnp.ones((3, 4))},))
        with pytest.raises(UserError, match="another optimizer"):
            checkpoints.restore(jax.eval_shape(lambda: other), HERE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resume", "maybe", "auto"),
        ("best_metric", "ema_top2", "ema_top1"),
        ("keep_newest", 0, "keep_newest"),
        ("keep_best", -1, "keep_best"),
    ],
)
def test_impossible_settings_are_refused(config, key, value, message):
    config[key] = value
    with pytest.raises(UserError, match=message):
        checkpoint.check_config(config)
