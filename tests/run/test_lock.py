"""Who may write to a workdir."""

import fcntl
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT

from effnet_jax.errors import UserError
from effnet_jax.run import files, lock
from effnet_jax.run.lock import WorkdirLock

HOLDER = """
import sys, time
from effnet_jax.run.lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_who_has_the_workdir_until_that_one_is_killed(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "locked\n"
        who = f"process {other.pid} on host {re.escape(socket.gethostname())} is running in"
        with pytest.raises(UserError, match=who), WorkdirLock(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / lock.NAME).read_text()
    with WorkdirLock(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.NAME).read_text()
    with WorkdirLock(tmp_path):  # As often as wanted.
        pass


def leave(workdir: pathlib.Path, beat: int = 0, **holder) -> None:
    own = {"host": "elsewhere", "pid": 1, "started": 1.0, "beat": f"{beat:012}"}
    files.write_atomically(workdir / lock.NAME, json.dumps({**own, **holder}) + "\n")


def test_a_run_on_another_host_counts_as_dead_when_it_shows_no_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    leave(tmp_path)
    said = []
    with WorkdirLock(tmp_path, said.append):
        first = (tmp_path / lock.NAME).read_text()
        time.sleep(0.5)
        assert (tmp_path / lock.NAME).read_text() != first
    assert "process 1 on elsewhere: waiting up to" in said[0]

    ended = threading.Event()

    def live():
        beat = 0
        while not ended.wait(0.02):
            leave(tmp_path, beat := beat + 1)

    leave(tmp_path)
    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(UserError, match="process 1 on host elsewhere"), WorkdirLock(tmp_path):
            pass
    finally:
        ended.set()
        other.join()


def test_where_the_file_system_has_no_locks_the_process_is_looked_for(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    started = psutil.Process().create_time()
    leave(tmp_path, host=socket.gethostname(), pid=os.getpid(), started=started)
    with pytest.raises(UserError, match=f"process {os.getpid()}"), WorkdirLock(tmp_path):
        pass
    leave(tmp_path, host=socket.gethostname(), pid=os.getpid(), started=started - 100)
    with WorkdirLock(tmp_path):  # Another process that has the number now.
        pass
    (tmp_path / lock.NAME).write_text("nonsense")
    with WorkdirLock(tmp_path):
        pass
