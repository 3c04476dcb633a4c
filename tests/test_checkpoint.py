"""Which checkpoints are kept and restored, and what is reported when one can't be."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import types

import golden_checkpoint
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from processes import Started

from effnet_jax import checkpoint, parallel
from effnet_jax import config as config_lib
from effnet_jax import weights as weights_lib
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.errors import SaveFailed, UserError
from effnet_jax.run import manifest
from effnet_jax.training import from_weights
from effnet_jax.training.state import TrainState, abstract_state

BEST = "val/ema/top1"
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
    return config_lib.get_config("b0").checkpoint


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(checkpoint, "say", lines.append)
    monkeypatch.setattr(from_weights, "say", lines.append)
    return lines


DIGITS = tuple("0123456789")


def save_all(workdir, config, scores: dict[int, float | None]) -> list[int]:
    with Checkpoints(workdir, config) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step), None if score is None else {BEST: score})
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
        Checkpoints(tmp_path, config) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint of step 5 .*; available steps: 3, 7"),
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


@pytest.mark.parametrize("verified", [True, False])
def test_a_damaged_checkpoint_is_passed_over_and_moved_aside(tmp_path, config, verified, said):
    save_all(tmp_path, config, {3: None, 7: None})
    damaged = tmp_path / checkpoint.FOLDER / "7"
    if not verified:
        (damaged / manifest.NAME).unlink()
    data = [path for path in damaged.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert data
    for path in data:
        path.write_bytes(path.read_bytes()[:20])
    with Checkpoints(tmp_path, config) as checkpoints:
        shapes = jax.eval_shape(lambda: state(0))
        with pytest.raises(UserError, match="can be read"):
            checkpoints.restore(shapes, HERE, step=7)
        assert damaged.is_dir()
        said.clear()
        assert int(checkpoints.restore(shapes, HERE).step) == 3
        (line,) = [line for line in said if "can't be read" in line]
        assert "checkpoint 7" in line
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
        offer = f"start a new run from these weights, add --config.init.weights={tmp_path}"
        with pytest.raises(UserError, match=f"another optimizer.*{offer}"):
            checkpoints.restore(jax.eval_shape(lambda: other), HERE)


def test_a_change_of_the_classes_is_offered_a_start_from_the_weights(tmp_path, config):
    def classes(count: int) -> State:
        return state(3).replace(params={"classifier": {"bias": jnp.ones((count,))}})

    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(3, classes(10))
        with pytest.raises(UserError, match=r"\(10,\), model \(5,\)[^$]*init.weights="):
            checkpoints.restore(jax.eval_shape(lambda: classes(5)), HERE)


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damage_to_any_file_is_found_and_the_one_before_is_used(
    tmp_path, config, damage, said, monkeypatch
):
    monkeypatch.setattr(Checkpoints, "_move_aside", lambda self, paths: None)
    save_all(tmp_path, config, {3: None, 7: 0.5})
    folder = tmp_path / checkpoint.FOLDER / "7"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"manifest.json", "_METADATA", "metrics", "_CHECKPOINT_METADATA"} <= {
        path.name for path in files
    }
    shapes = jax.eval_shape(lambda: state(0))
    with Checkpoints(tmp_path, config) as checkpoints:
        for path in files:
            whole = path.read_bytes()
            path.write_bytes(damage(whole))
            said.clear()
            assert int(checkpoints.restore(shapes, HERE).step) == 3
            assert len(said) == 1
            assert path.relative_to(folder).as_posix() in said[0]
            path.write_bytes(whole)
        assert int(checkpoints.restore(shapes, HERE).step) == 7


def test_a_missing_or_added_file_is_found(tmp_path, config):
    save_all(tmp_path, config, {3: None, 7: None})
    folder = tmp_path / checkpoint.FOLDER / "7"
    assert manifest.find_damage(folder) is None
    (folder / ".nfs0001").touch()
    assert manifest.find_damage(folder) is None
    (folder / "default" / "more").touch()
    assert manifest.find_damage(folder) == "default/more was not saved with it"
    (folder / "default" / "_METADATA").unlink()
    assert manifest.find_damage(folder) == "default/_METADATA is missing"


def test_a_later_format_is_left_alone(tmp_path, config, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(manifest, "FORMAT", 2)
        save_all(tmp_path, config, {3: None})
    with (
        Checkpoints(tmp_path, config) as checkpoints,
        pytest.raises(UserError, match="is of format 2, and this release knows 1"),
    ):
        checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE)
    assert (tmp_path / checkpoint.FOLDER / "3").is_dir()


def test_what_was_never_finished_is_not_used(tmp_path, config, said):
    save_all(tmp_path, config, {3: None, 7: None})
    folder = tmp_path / checkpoint.FOLDER
    shutil.copytree(folder / "7", folder / "9.orbax-checkpoint-tmp")
    shutil.copytree(folder / "3", folder / "1.deleted")
    (folder / "7" / manifest.NAME).unlink()
    (folder / "7" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.steps() == [3]
        assert int(checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE).step) == 3
    assert "never finished" in said[0]
    assert [path.name for path in folder.iterdir()] == ["3"]


def test_a_checkpoint_is_deleted_once_a_newer_one_is_verified(tmp_path, config, monkeypatch, said):
    config.keep_newest, config.keep_best = 1, 0

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        with monkeypatch.context() as broken:
            broken.setattr(manifest, "write", fail)
            checkpoints.save(2, state(2))
            checkpoints.settle()
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.good_step == 1
        assert "checkpoint 2 could not be saved: [Errno 5] Input/output error" in said[0]
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.steps() == [3]


def test_one_that_was_not_verified_is_read_and_reported_and_counts_for_nothing(
    tmp_path, config, said
):
    config.keep_newest = 2
    save_all(tmp_path, config, {1: None, 3: 0.5})
    path = tmp_path / checkpoint.FOLDER / "3" / manifest.NAME
    path.unlink()  # As if the run was killed before.
    with Checkpoints(tmp_path, config) as checkpoints:
        assert int(checkpoints.restore(jax.eval_shape(lambda: state(0)), HERE).step) == 3
    assert "has no manifest.json: its run is verifying it, or was killed before" in said.pop()
    assert save_all(tmp_path, config, {5: None}) == [1, 5]


@contextlib.contextmanager
def files_of_at_most(size: int):
    """As a full disk: whoever writes more gets an error of the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large_state(step: int) -> State:
    noise = np.random.default_rng(step).normal(size=(100_000,)).astype(np.float32)
    return state(step).replace(params={"conv": {"kernel": jnp.asarray(noise)}})


def test_processes_agree_on_what_only_one_of_them_can_save_or_read(tmp_path):
    script = [str(ROOT / "tests" / "saving_process.py"), f"--workdir={tmp_path / 'run'}"]
    with Started(script, tmp_path, devices=1) as two:
        assert two.finish(60) == [0, 0], two.outputs()
        outputs = [two.output(number) for number in range(2)]
    for output in outputs:
        lines = [line for line in output.splitlines() if line.startswith("after ")]
        assert lines == [
            "after 10: [], good None",
            "after 20: [20], good 20",
            "after 30: [20], good 20",
            "after 40: [20], good 20",
            "after 50: [20, 50], good 50",
        ]
        assert "The run goes on; no checkpoint yet, 10 steps and 0 minutes after the" in output
        assert "checkpoint 30 could not be saved: process 0: OUT_OF_RANGE" in output
        assert "checkpoint 40 could not be saved: process 1: OUT_OF_RANGE" in output
        assert "can't be read: process 1: stale file handle\nrestored 20\n" in output


def test_a_save_that_the_disk_refuses_stops_no_run(tmp_path, config, said):
    folder = tmp_path / checkpoint.FOLDER
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(10, large_state(10))
        checkpoints.wait()
        with files_of_at_most(50_000):
            for step in (20, 30):
                checkpoints.save(step, large_state(step))
                checkpoints.settle()
                assert [path.name for path in folder.iterdir()] == ["10"]
        assert "checkpoint 20 could not be saved" in said[0]
        assert "File too large" in said[0]
        assert "the last good checkpoint is 20 steps and 0 minutes old" in said[1]
        assert checkpoints.good_step == 10
        assert checkpoints.alarm(30, 10) is None
        assert "30 steps and 0 minutes old, and one is planned every 10" in checkpoints.alarm(
            40, 10
        )
        with pytest.raises(SaveFailed, match=r"checkpoint 30 could not .*good checkpoint: 10$"):
            checkpoints.wait()
        checkpoints.save(40, large_state(40))
        checkpoints.wait()
        assert checkpoints.steps() == [10, 40]
        assert checkpoints.alarm(40, 10) is None
        restored = checkpoints.restore(jax.eval_shape(lambda: large_state(0)), HERE)
        np.testing.assert_array_equal(
            restored.params["conv"]["kernel"], large_state(40).params["conv"]["kernel"]
        )


def test_a_workdir_that_vanishes_and_comes_back(tmp_path, config, said):
    workdir, away = tmp_path / "run", tmp_path / "away"
    with Checkpoints(workdir, config) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        workdir.rename(away)
        checkpoints.save(2, state(2))
        checkpoints.settle()
        assert f"No such file or directory: '{workdir / checkpoint.FOLDER}'" in said[0]
        assert not workdir.exists()
        away.rename(workdir)
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]


def test_other_errors_of_a_save_are_raised(tmp_path, config, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(manifest, "write", fail)
    checkpoints = Checkpoints(tmp_path, config)
    checkpoints.save(1, state(1))
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.wait()


FULL_DISK = """
import contextlib, json, pathlib, jax, numpy as np
from effnet_jax import checkpoint, config as config_lib
from effnet_jax.run import writers

workdir, said, steps = pathlib.Path("/mnt/run"), [], []
workdir.mkdir()
checkpoint.say = said.append
metrics = writers.open_writers(workdir, 0, 14)
state = {"params": jax.numpy.asarray(np.random.default_rng(0).normal(size=200_000), "float32")}
row = {"epoch": 1.0}
with checkpoint.Checkpoints(workdir, config_lib.get_config("b0").checkpoint) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    filler = pathlib.Path("/mnt/filler")
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(10**8))
    for step in range(2, 14):  # More rows than any queue is long.
        metrics.scalars(step, row)
    checkpoints.save(2, state)
    checkpoints.settle()
    steps.append(checkpoints.steps())
    filler.unlink()
    metrics.scalars(14, row)
    checkpoints.save(3, state)
    checkpoints.wait()
    steps.append(checkpoints.steps())
    metrics.close()
rows = [row["step"] for row in writers.read_metrics(workdir)]
print(json.dumps({"said": said, "steps": steps, "rows": rows}))
"""
MOUNTED = "mount -t tmpfs -o size=8m tmpfs /mnt"


def test_a_disk_that_is_full_for_a_while_loses_no_metrics_and_no_good_checkpoint():
    alone = ["unshare", "-rm", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*alone, MOUNTED], capture_output=True).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    script = f'{MOUNTED} && exec {sys.executable} -c "$SCRIPT"'
    environment = {**os.environ, "SCRIPT": FULL_DISK, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*alone, script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "No space left on device" in found["said"][0]
    assert found["steps"] == [[1], [1, 3]]
    assert found["rows"] == list(range(2, 15))
    assert done.stderr.count("can't write metrics") == 1


def test_a_state_moves_between_one_device_and_many(tmp_path, config):
    mesh = parallel.data_mesh()
    split = NamedSharding(mesh, PartitionSpec("data"))
    wide = {"step": jnp.asarray(3), "params": {"a": jnp.arange(64.0)}, "ema": jnp.arange(16.0)}
    places = {"step": parallel.replicated(mesh), "params": split, "ema": parallel.replicated(mesh)}
    spread = jax.tree.map(jax.device_put, wide, jax.tree.broadcast(places, wide))
    shapes = jax.eval_shape(lambda: wide)
    for saved, wanted in ((jax.device_put(wide, HERE), places), (spread, HERE)):
        workdir = tmp_path / str(type(wanted))
        with Checkpoints(workdir, config) as checkpoints:
            checkpoints.save(3, saved)
            checkpoints.wait()
            restored = checkpoints.restore(shapes, wanted)
        expected = jax.tree.broadcast(wanted, wide)
        for new, old, place in zip(*map(jax.tree.leaves, (restored, wide, expected)), strict=True):
            np.testing.assert_array_equal(new, old)
            assert new.sharding == place


def test_a_restored_state_is_donated_and_compiles_nothing(tmp_path, config):
    place = parallel.replicated(parallel.data_mesh())
    current = jax.device_put({"a": jnp.ones((256, 256)), "b": jnp.ones((1000,))}, place)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    current = step(current)
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(1, current)
        checkpoints.wait()
        restored = checkpoints.restore(jax.eval_shape(lambda: current), place)

    def buffers(tree) -> list[int]:
        leaves = jax.tree.leaves(tree)
        return [
            shard.data.unsafe_buffer_pointer() for x in leaves for shard in x.addressable_shards
        ]

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    )
    before = buffers(restored)
    after = step(restored)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored))
    assert buffers(after) == before
    assert not compiled


@pytest.fixture(scope="module")
def golden():
    config = config_lib.load(golden_checkpoint.WORKDIR)
    return config, abstract_state(config, 1437)[2]


def test_the_golden_checkpoint_loads_on_one_device_and_on_many(golden):
    config, shapes = golden
    expected = json.loads((golden_checkpoint.WORKDIR / "expected.json").read_text())
    with Checkpoints(golden_checkpoint.WORKDIR, config.checkpoint) as checkpoints:
        state = checkpoints.restore(shapes, HERE)
        spread = checkpoints.restore(shapes, parallel.replicated(parallel.data_mesh()))
    found = golden_checkpoint.describe(config, state)
    assert found["step"] == expected["step"] == 5
    assert found["sums"] == pytest.approx(expected["sums"], rel=1e-12)
    found["logits"]["on many"] = golden_checkpoint.classify(config)(*spread.weights("ema"))
    expected["logits"]["on many"] = expected["logits"]["ema"]
    for which, logits in expected["logits"].items():
        np.testing.assert_allclose(found["logits"][which], logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(spread), jax.device_get(state))


@pytest.mark.parametrize("copied", [False, True])
def test_weights_are_read_from_a_workdir_and_from_a_copied_checkpoint(golden, copied, tmp_path):
    config, shapes = golden
    workdir = golden_checkpoint.WORKDIR
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        state = jax.device_get(checkpoints.restore(shapes, HERE))
    path = workdir
    if copied:
        path = shutil.copytree(workdir / checkpoint.FOLDER / "5", tmp_path / "best")
    for which in ("ema", "raw"):
        step, variables, facts = checkpoint.read_weights(path, weights=which)
        assert step == 5
        params, batch_stats = state.weights(which)
        wanted = {"params": params, "batch_stats": batch_stats}
        jax.tree.map(np.testing.assert_array_equal, variables, wanted)
    assert facts["classes"] == json.loads((workdir / "classes.json").read_text())
    saved = json.loads((workdir / "config.json").read_text())
    assert facts == {key: saved[key] for key in ("model", "preprocess")} | {
        "classes": facts["classes"]
    }


def test_weights_that_are_not_there_or_damaged(golden, tmp_path, said):
    assert checkpoint.read_weights(tmp_path) is None
    path = shutil.copytree(golden_checkpoint.WORKDIR / checkpoint.FOLDER / "5", tmp_path / "best")
    with pytest.raises(UserError, match=r"no checkpoint of step 4 in .*; available steps: 5"):
        checkpoint.read_weights(golden_checkpoint.WORKDIR, step=4)
    (path / "default" / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"can be read \(tried best\)"):
        checkpoint.read_weights(path)
    assert "default/_METADATA" in said[0]
    bare = tmp_path / "bare"
    shutil.copytree(golden_checkpoint.WORKDIR / checkpoint.FOLDER / "5", bare)
    (bare / manifest.NAME).unlink()
    with pytest.raises(UserError, match=f"has no {manifest.NAME} .* give the run's workdir"):
        checkpoint.read_weights(bare)


@pytest.mark.parametrize("deletions", [2, 99])
def test_weights_of_a_run_that_deletes_checkpoints_meanwhile(
    golden, tmp_path, said, monkeypatch, deletions
):
    workdir = shutil.copytree(golden_checkpoint.WORKDIR, tmp_path / "run")
    wanted, read = checkpoint.read_weights(workdir), checkpoint._read

    def delete_and_read(path, *arguments):
        if int(path.name) < 5 + deletions:  # And the run has saved a newer one.
            os.replace(path, path.with_name(str(int(path.name) + 1)))
        return read(path, *arguments)

    monkeypatch.setattr(checkpoint, "_read", delete_and_read)
    monkeypatch.setattr(checkpoint, "TRIES", 3)
    if deletions > 2:
        with pytest.raises(UserError, match=r"can be read \(tried 7\)"):
            checkpoint.read_weights(workdir)
    else:
        found = checkpoint.read_weights(workdir)
        jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])
    names = [line.split()[1] for line in said if "it was deleted while it was read" in line]
    assert names == ["5", "6", "7"][:deletions]


def test_threads_of_a_failed_read_print_nothing_about_it(monkeypatch):
    """TensorStore's find the event loop of the read closed, and have no one to tell."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(text))
        for text in ("Event loop is closed", "something else")
    )
    with checkpoint._without_late_errors():
        sys.unraisablehook(late)
        sys.unraisablehook(other)
    assert printed == [other]
    sys.unraisablehook(late)
    assert printed == [other, late]


def test_a_new_run_starts_from_the_weights_of_another(golden, monkeypatch, said):
    config, shapes = golden
    folder = golden_checkpoint.WORKDIR / checkpoint.FOLDER / "5"

    def start(state, classes, which="raw"):
        found = weights_lib.load(folder, weights=which)
        return from_weights.start_from(state, found, classes, "that run")

    def fresh(classes: int = 10, stem: int = 8):
        def array(path, leaf):
            shape, name = leaf.shape, jax.tree_util.keystr(path)
            if "classifier" in name:
                shape = (*shape[:-1], classes)
            if "stem" in name and "conv" in name:
                shape = (*shape[:-1], stem)
            return jax.device_put(np.full(shape, 7, leaf.dtype), HERE)

        return jax.tree.map_with_path(array, shapes)

    with Checkpoints(golden_checkpoint.WORKDIR, config.checkpoint) as checkpoints:
        source = jax.device_get(checkpoints.restore(shapes, HERE))
    for which in ("ema", "raw"):
        state = start(fresh(), DIGITS, which)
        count = len(jax.tree.leaves(source.weights(which)))
        assert f"from {count} of {count} arrays of step 5 in that run" in said.pop()
        taken = (state.weights("raw"), state.weights("ema"))
        wanted = (source.weights(which), source.weights(which))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(taken), wanted)
        assert int(state.step) == 7
        assert all((leaf == 7).all() for leaf in jax.device_get(jax.tree.leaves(state.opt_state)))

    # A sharded state stays sharded.
    monkeypatch.setattr(parallel, "LEAST_SPLIT", 1)
    places = parallel.state_sharding(shapes, parallel.data_mesh(), sharded=True)
    state = start(jax.device_put(fresh(), places), DIGITS)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
    said.clear()

    state = start(fresh(classes=3), tuple("abc"))
    assert "0 of 3 are taken, 3 are new (a, b, c), 10 of the weights' are not used" in said[0]
    assert f"from {count - 2} of {count} arrays" in said[1]
    assert (state.params["classifier"]["bias"] == 7).all()
    assert state.ema["params"]["classifier"]["kernel"].shape[-1] == 3
    np.testing.assert_array_equal(
        state.params["stem"]["conv"]["kernel"], source.params["stem"]["conv"]["kernel"]
    )
    # As many classes, in another order, of which some are new: by name, not by place.
    said.clear()
    state = start(fresh(), tuple("9x8y543210"))
    assert "8 of 10 are taken, 2 are new (x, y), 2 of the weights' are not used" in said[0]
    for leaf in ("kernel", "bias"):
        there = source.weights("raw")[0]["classifier"][leaf]
        for tree in state.weights("raw")[0], state.weights("ema")[0]:
            here = np.asarray(tree["classifier"][leaf])
            assert (here[..., [1, 3]] == 7).all()
            np.testing.assert_array_equal(here[..., [0, 2, 4, 9]], there[..., [9, 8, 5, 0]])
    with pytest.raises(UserError, match=r"weights of another model:\n.*checkpoint .*, model "):
        start(fresh(stem=9), DIGITS)


def test_a_checkpoint_moves_between_meshes_and_numbers_of_devices(tmp_path, config, monkeypatch):
    monkeypatch.setattr(parallel, "LEAST_SPLIT", 1)
    arrays = {"kernel": jnp.arange(64.0).reshape(4, 16)}
    whole = TrainState(jnp.int32(1), arrays, arrays, (arrays,), arrays, jnp.int32(0), jnp.int32(0))
    shapes, changes = jax.eval_shape(lambda: whole), config_lib.get_config()
    with Checkpoints(tmp_path, config) as checkpoints:
        now = jax.device_put(whole, HERE)
        for step, (devices, model) in enumerate([(8, 4), (8, 1), (4, 2), (1, 1), (8, 8)], 1):
            checkpoints.save(step, now)
            checkpoints.wait()
            changes.mesh.model = model
            mesh = parallel.data_mesh(jax.devices()[:devices])
            mesh = parallel.with_model_axis(mesh, changes)
            places = parallel.state_sharding(shapes, mesh, sharded=False)
            now = checkpoints.restore(shapes, places, step=step)
            kernel = now.params["kernel"]
            assert kernel.sharding == places.params["kernel"]
            assert kernel.addressable_shards[0].data.size == 64 // model
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(now), whole)
