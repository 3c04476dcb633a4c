"""A run in a bucket ends in the bits of a run on a disk, however often it is killed.

It is killed at random requests, so mostly in the middle of a save, while some of the requests fail.
`make soak-bucket` does it 10 times; it is too long for the suite, whose pattern of names it lacks.
"""

import os
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("gcp_storage_emulator")
# Gcsfs reads it when it is imported: else it asks the real service what kind a bucket is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("gcsfs")

from bucket_server import BUCKET, RESET, Bucket
from conftest import ROOT
from test_soak import (
    BATCH,
    EVERY,
    EXAMPLES,
    MODEL,
    SETTINGS,
    TIMED,
    metrics_of,
    state_of,
)
from test_soak import (
    start as start_two,
)

from effnet_jax.run import workdirs, writers

ROUNDS = int(os.environ.get("SOAK_ROUNDS", 1))
STEPS = EVERY * (3 * ROUNDS + 1)
CHANGED = {
    "epochs": STEPS * BATCH / EXAMPLES,
    "eval_epochs": STEPS / 2 * BATCH / EXAMPLES,
    "checkpoint.keep_newest": 2,
}


def start(workdir, server) -> subprocess.Popen:
    settings = [f"--config.{key}={value}" for key, value in (SETTINGS | CHANGED).items()]
    config = f"--config={ROOT}/configs/digits.py:{MODEL}"
    command = [sys.executable, str(ROOT / "train.py"), config, f"--workdir={workdir}", *settings]
    environment = {**os.environ, **server.environment}
    environment.pop("XLA_FLAGS")  # One device.
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **streams)


def test_killed_at_random_requests_a_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    draw, remote = random.Random(ROUNDS), f"gs://{BUCKET}/soak/run"
    with Bucket() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        whole = start(tmp_path / "whole", server)
        output, _ = whole.communicate(timeout=300)
        assert whole.returncode == 0, output
        for number in range(ROUNDS):
            last = draw.randint(40, 360)
            process, before = start(remote, server), len(server.requests)

            def fault(method, path, process=process, last=last, before=before):
                if len(server.requests) - before >= last:
                    process.kill()
                return draw.choice((429, 503, RESET)) if draw.random() < 0.01 else None

            server.fault = fault
            output, _ = process.communicate(timeout=300)
            assert process.returncode == -signal.SIGKILL, output
            steps = re.findall(r"starting at step \d+|resuming at step \d+", output)
            saved = sorted({name.split("/")[3] for name in server.names() if "/default/" in name})
            print(f"round {number + 1}/{ROUNDS}: {steps}, killed at request {last}, has {saved}")
        process = start(remote, server)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        server.fault = lambda method, path: None
        with workdirs.opened(remote, writes=False) as place:
            rows = writers.read_metrics(place.folder)
        rows = [{key: row[key] for key in row.keys() - TIMED} for row in rows]
        assert rows == metrics_of(tmp_path / "whole")
        names = server.names()
        steps = {name.split("/")[3] for name in names if "/checkpoints/" in name}
        assert all(f"soak/run/checkpoints/{step}/manifest.json" in names for step in steps)
        assert "soak/run/run.lock" not in names
        for one, other in zip(state_of(tmp_path / "whole"), state_of(remote), strict=True):
            np.testing.assert_array_equal(one, other)


def test_two_processes_in_a_bucket_compute_what_they_do_on_a_disk(tmp_path, monkeypatch):
    remote = f"gs://{BUCKET}/soak/two"
    with Bucket() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        for workdir, outputs in ((tmp_path / "two", "local"), (remote, "remote")):
            with start_two(workdir, tmp_path / outputs) as two:
                assert two.finish() == [0, 0], two.outputs()
        for one, other in zip(state_of(tmp_path / "two"), state_of(remote), strict=True):
            np.testing.assert_array_equal(one, other)
        assert "soak/two/run.lock" not in server.names()
