"""Two processes compute what one does, and end in the same bits if they are stopped or killed.

`make soak` kills one of them SOAK_ROUNDS = 20 times at random, and lets them split parameters.
"""

import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np
import pytest
from conftest import QUICK, ROOT
from jax.sharding import SingleDeviceSharding
from processes import Started

from configs import digits
from effnet_jax import cli
from effnet_jax import config as config_lib
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.run import writers
from effnet_jax.training import supervisor
from effnet_jax.training.state import abstract_state

ROUNDS = int(os.environ.get("SOAK_ROUNDS", 0))
WIDE = "resnet18,w=0.1,d=0.1,r=16"  # Some of its arrays are large enough to be split.
EXAMPLES, BATCH = 1437, 64
EVERY = 4  # Steps between two checkpoints.
STEPS = EVERY * max(ROUNDS + 1, 2)
SETTINGS = {
    "batch_size": BATCH,
    "eval_batch_size": 128,
    "epochs": STEPS * BATCH / EXAMPLES,
    "eval_epochs": STEPS / 2 * BATCH / EXAMPLES,
    "log_steps": 1,
    "data.eval_split": "train[:203]",  # No multiple of anything.
    "checkpoint.save_epochs": EVERY * BATCH / EXAMPLES,
    "checkpoint.keep_newest": 100,
    "processes.lost_seconds": 3.0,
}
TIMED = {"images_per_second", "data_wait", "resident_mib", "seconds_left"}
TIMED |= {"step_seconds", "step_seconds_max", "own_seconds"}


def start(
    workdir: pathlib.Path,
    outputs: pathlib.Path,
    model: str = QUICK,
    changes: Mapping[str, float] = MappingProxyType({}),
) -> Started:
    """Two processes of one run on digits, with 4 devices each."""
    outputs.mkdir(exist_ok=True)
    config = f"--config={ROOT}/configs/digits.py:{model}"
    settings = [f"--config.{key}={value}" for key, value in {**SETTINGS, **changes}.items()]
    return Started([str(ROOT / "train.py"), config, f"--workdir={workdir}", *settings], outputs)


def state_of(workdir: pathlib.Path, step: int | None = None) -> list[np.ndarray]:
    """All arrays of a checkpoint, by default the newest."""
    config = config_lib.load(workdir)
    _, _, shapes = abstract_state(config, EXAMPLES)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        state = checkpoints.restore(shapes, SingleDeviceSharding(jax.devices()[0]), step)
    return jax.tree.leaves(jax.device_get(state))


def metrics_of(workdir: pathlib.Path) -> list[dict[str, float]]:
    rows = writers.read_metrics(workdir)
    return [{key: row[key] for key in row.keys() - TIMED} for row in rows]


def kill_one(two: Started, victim: int) -> None:
    """The other one ends by itself."""
    two[victim].send_signal(signal.SIGKILL)
    # JAX itself ends the others where the first process is gone; 0: the kill came too late.
    codes = (0, cli.INTERRUPTED, -signal.SIGABRT)
    assert two[1 - victim].wait(120) in codes, two.outputs()


@pytest.mark.skipif(not ROUNDS, reason="half a minute of two cores; a part of `make soak`")
def test_two_processes_split_parameters_and_one_resumes_on_another_mesh(tmp_path):
    """Steps 1 and 2 are of two processes, steps 3 and 4 of one."""
    epochs = [steps * BATCH / EXAMPLES for steps in (2, 4)]
    split = {"epochs": epochs[0], "mesh.model": 8}
    with start(tmp_path / "run", tmp_path, WIDE, split) as two:
        assert two.finish() == [0, 0], two.outputs()
        assert "mesh: 1 x 8 devices (data x model)" in two.output(0)
    config = digits.get_config(WIDE)
    config.update_from_flattened_dict({**SETTINGS, "epochs": epochs[1]})
    expected, _ = supervisor.train_and_evaluate(config, str(tmp_path / "whole"))
    config.mesh.model = 2
    state, _ = supervisor.train_and_evaluate(config, str(tmp_path / "run"))
    kernel = state.params["stage4"]["block1"]["conv2"]["kernel"]
    assert kernel.addressable_shards[0].data.nbytes == kernel.nbytes // 2
    assert int(state.step) == int(expected.step) == 4
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_stopped_or_killed_at_random_times_a_run_ends_in_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    with start(whole, tmp_path / "outputs") as two:
        assert two.finish() == [0, 0], two.outputs()
        assert "starting at" not in two.output(1)  # One process talks.
    took = time.monotonic() - began
    expected = metrics_of(whole)
    assert expected[-1]["val/ema/count"] == expected[-1]["val/raw/count"] == 203

    # One process on as many devices; sums over processes are in another order than sums in one.
    config = digits.get_config(QUICK)
    config.update_from_flattened_dict({key: SETTINGS[key] for key in SETTINGS})
    config.epochs = EVERY * BATCH / EXAMPLES
    state, _ = supervisor.train_and_evaluate(config, str(tmp_path / "one"))
    for a, b in zip(jax.tree.leaves(state), state_of(whole, EVERY), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())
    steps_of_one = [row for row in metrics_of(tmp_path / "one") if "train_loss" in row]
    for one, other in zip(steps_of_one, expected, strict=False):
        assert one == pytest.approx(other, rel=1e-5)

    # A signal to one stops both, after the same step.
    with start(killed, tmp_path / "signalled") as two:
        two.wait_for(lambda: writers.read_metrics(killed))
        two[1].send_signal(signal.SIGTERM)
        assert two.finish() == [cli.INTERRUPTED] * 2, two.outputs()
        stops = [re.search(r"stopped by (.*) after step (\d+) of", two.output(i)) for i in (0, 1)]
    assert [stop[1] for stop in stops] == ["SIGTERM on process 1", "SIGTERM"]
    assert stops[0][2] == stops[1][2]

    draw = random.Random(ROUNDS)

    def reached() -> int:
        return max(row["step"] for row in writers.read_metrics(killed))

    for number in range(ROUNDS):
        # In its start, or while it trains, evaluates and saves.
        first, victim = reached(), draw.randrange(2)
        last = 0 if number % 2 else min(first + draw.randint(1, EVERY), STEPS - 1)
        with start(killed, tmp_path / f"round_{number}") as two:
            two.wait_for(lambda two=two: all("Gloo" in two.output(i) for i in (0, 1)))
            two.wait_for(lambda last=last: reached() >= last)
            # At a random moment, but before steps for the other rounds are done.
            moment = time.monotonic() + draw.uniform(0, took / 4 if last == 0 else 1)
            while time.monotonic() < moment and reached() < min(first + EVERY, STEPS) - 1:
                time.sleep(0.005)
            kill_one(two, victim)
        print(
            f"round {number + 1}/{ROUNDS}: process {victim} killed, at step {reached()}", flush=True
        )
    with start(killed, tmp_path / "outputs") as two:
        assert two.finish() == [0, 0], two.outputs()
    assert metrics_of(killed) == expected
    for one, other in zip(state_of(whole), state_of(killed), strict=True):
        np.testing.assert_array_equal(one, other)
