"""Who may write to a folder."""

import fcntl
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading

import psutil
import pytest
from conftest import ROOT

from effnet_jax.errors import UserError
from effnet_jax.run import files

HOLDER = """
import pathlib, subprocess, sys, time
from effnet_jax.run import files
with files.Lock(pathlib.Path(sys.argv[1])) as lock:
    child = subprocess.Popen(["sleep", "60"], stdout=-3, pass_fds=[lock.descriptor])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / files.RUN_LOCK


def test_a_second_run_is_refused_until_the_first_and_its_children_end(path, monkeypatch, capsys):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        child = psutil.Process(int(other.stdout.readline()))
        who = f"process {other.pid} on host {re.escape(socket.gethostname())}. is running in"
        with pytest.raises(UserError, match=who), files.Lock(path):
            pass
    finally:
        other.kill()
        other.communicate()
    assert path.read_text()
    # The child inherited the lock; it ends while the next one waits for it.
    monkeypatch.setattr(files.time, "sleep", lambda seconds: child.kill())
    with files.Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "waiting for the children of a run that was killed" in capsys.readouterr().err
    assert not path.exists()
    with files.Lock(path):  # As often as wanted.
        pass


def leave(path: pathlib.Path, beat: int = 0, **holder) -> None:
    own = {"host": "elsewhere", "pid": 1, "started": 1.0, "beat": f"{beat:012}"}
    files.write_atomically(path, json.dumps({**own, **holder}) + "\n")


def test_a_run_on_another_machine_counts_as_dead_without_signs_of_life(path, monkeypatch, capsys):
    monkeypatch.setattr(files, "BEAT", 0.02)
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    leave(path)
    with files.Lock(path):
        first = path.read_text()
        while path.read_text() == first:  # Until this process shows its own.
            pass
    assert "process 1 on host elsewhere: waiting up to" in capsys.readouterr().err

    ended = threading.Event()

    def live():
        beat = 0
        while not ended.wait(0.01):
            leave(path, beat := beat + 1)

    leave(path)
    monkeypatch.setattr(files, "PATIENCE", 30)
    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(UserError, match="process 1 on host elsewhere"), files.Lock(path):
            pass
    finally:
        ended.set()
        other.join()


def test_where_the_file_system_has_no_locks_the_process_is_looked_for(path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    started = psutil.Process().create_time()
    leave(path, host=socket.gethostname(), pid=os.getpid(), started=started)
    with pytest.raises(UserError, match=f"process {os.getpid()}"), files.Lock(path):
        pass
    leave(path, host=socket.gethostname(), pid=os.getpid(), started=started - 100)
    with files.Lock(path):  # Another process that has the number now.
        pass
    path.write_text("nonsense")
    with files.Lock(path):
        pass
