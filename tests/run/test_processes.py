"""Two real processes over loopback: agreement, and who is named where one fails.

That they compute what one does, whatever happens to them, is in test_soak.py.
"""

import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
from conftest import ROOT
from processes import Started, free_port

from configs import digits
from effnet_jax import cli, parallel
from effnet_jax import config as config_lib
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.run import coordinator, processes, signals

SCRIPT = [str(ROOT / "tests" / "run" / "two_processes.py")]


def test_differences_agreement_a_late_process_and_one_that_sleeps(tmp_path):
    with Started([*SCRIPT, "--case=together"], tmp_path, devices=1) as two:
        two.wait_for(lambda: two.outputs().count("on the way") == 2)
        late = subprocess.run(two[1].args, capture_output=True, text=True, timeout=60, env=two.env)
        assert late.returncode == cli.INTERRUPTED, late.stderr
        running = f" has process 1 ({socket.gethostname()}, pid {two[1].pid}), in step "
        assert running in late.stderr
        assert two[0].poll() is two[1].poll() is None
        two[1].send_signal(signal.SIGSTOP)
        assert two[0].wait(60) == cli.INTERRUPTED
        pids = [process.pid for process in two.all]
        first, second = two.output(0), two.output(1)
    for output in (first, second):
        assert f"pid {pids[1]}), in start has seed: 1, and 0 on process 0" in output
        assert "code: " not in output
    asked = first.partition("stopped by SIGTERM on process 1 after ")[2].split()[0]
    assert f"stopped by SIGTERM after {asked}\n" in second
    assert "waited 0.5 s at 'compiled' for process 1 (" in first
    name = f"process 1 ({socket.gethostname()}, pid {pids[1]})"
    assert f"process 0: error: lost {name}, last heard " in first
    assert "in step " in first


@pytest.mark.parametrize(
    "case, codes, message",
    [
        ("stall", [75, 75], "no progress for 2 s in step 8; behind: process 1 ("),
        ("error", [2, 2], "ended: error: cannot read image 7"),
    ],
)
def test_a_process_that_makes_no_progress_or_fails_ends_all(tmp_path, case, codes, message):
    with Started([*SCRIPT, f"--case={case}"], tmp_path, devices=1) as two:
        assert two.finish(60) == codes, two.outputs()
        assert message in two.output(0)


@pytest.mark.parametrize("alive", [True, False])
def test_a_live_process_with_a_number_is_found_and_a_dead_one_is_not(alive):
    """The first change of a beat may come from before the process died."""
    address, beats = f"localhost:{free_port()}", iter(range(10**9))
    last = 10**9 if alive else 2

    def describe(index: int) -> tuple[int, str]:
        return {7: lambda: (min(next(beats), last - 1), "process 7 (node3, pid 5)")}[index]()

    threading.Thread(target=coordinator.answer, args=(address, describe), daemon=True).start()
    while not coordinator._ask(address, 7):
        time.sleep(0.01)
    seconds = 60 if alive else 0.5
    name = "process 7 (node3, pid 5)" if alive else None
    assert coordinator.find_running(address, 7, seconds) == name


def test_without_an_answer_of_the_coordinator_a_process_joins():
    assert coordinator.find_running("name.invalid:9876", 1, seconds=60) is None
    assert coordinator.find_running(f"localhost:{free_port()}", 1, seconds=60) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("here:1", None, None), "go together"),
        (("here:1", 2, 2), "--process_id=2 is not between 0 and 1"),
        (("here", 2, 1), "is not HOST:PORT"),
        (("http://localhost:9876", 2, 1), "http://localhost:9876 is not HOST:PORT"),
        (("10.0.0.2:9876/", 2, 1), "is not HOST:PORT"),
        (("fe80::1:9876", 2, 1), "is not HOST:PORT"),
        ((":9876", 2, 1), "is not HOST:PORT"),
        (("[::1]:70000", 2, 1), "a port is between 1 and 65535"),
        (("here:0", 2, 1), "a port is between 1 and 65535"),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        processes.join(*arguments, 1.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_one_message_of_process_0(host):
    """JAX's coordinator ends with a segmentation fault."""
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        message = f"port {port} of --coordinator_address=localhost:{port} can't be used on this"
        with pytest.raises(UserError, match=message):
            processes.join(f"localhost:{port}", 2, 0, 1.0)


# As eval.py, with other times between two lines of progress.
EVALUATION = (
    "from effnet_jax import cli; from effnet_jax.run import processes\n"
    "from effnet_jax.tools import eval\n"
    "processes.REPORT_SECONDS = {}\n"
    "cli.run(eval.main, eval.PARSER)"
)


def test_processes_that_are_not_there_are_waited_for_with_progress_and_a_limit(tmp_path):
    """As long as the config says; eval.py by the config of the run."""
    config = digits.get_config()
    config.processes.start_seconds = 1.5
    config_lib.save(config, tmp_path / "config.json")
    address = f"127.0.0.1:{free_port()}"
    place = [f"--coordinator_address={address}", "--num_processes=3", "--process_id=0"]
    process = subprocess.run(
        [sys.executable, "-c", EVALUATION.format(1), f"--workdir={tmp_path}", *place],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == cli.INTERRUPTED
    where = f"at {address} for all 3 processes"
    progress, end = process.stderr.splitlines()
    assert progress == f"process 0: waiting {where}, 1 of 1.5 s"
    limit = "waited 1.5 s (config.processes.start_seconds)"
    assert end.startswith(
        f"process 0: error: {limit} {where}. Start each process with the same address"
    )


def test_ctrl_c_ends_the_wait_for_other_processes():
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    place = [address, "--num_processes=2", "--process_id=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", EVALUATION.format(0.2), *place, "--workdir=run"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr.readline().startswith("process 1: waiting at 127.0.0.1:")
        process.send_signal(signal.SIGINT)
        lines = process.communicate(timeout=30)[1].splitlines()
    finally:
        process.kill()
    assert process.returncode == cli.STOPPED
    assert lines[-1] == "stopped at once by Ctrl-C; the checkpoints are unchanged"


def test_a_cluster_is_found_by_its_variables(monkeypatch):
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
    script = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert processes.find_cluster({}) is None
    assert processes.find_cluster(script) is None  # The job's script, or a login shell.
    assert processes.find_cluster({**script, "SLURM_STEP_NUM_TASKS": "4"}) == "SLURM"
    assert processes.find_cluster({**script, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert processes.find_cluster({"OMPI_COMM_WORLD_SIZE": "2"}) == "Open MPI"
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}
    assert processes.find_cluster(pod) == "Kubernetes"
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/accel0"])
    assert processes.find_cluster({"TPU_WORKER_HOSTNAMES": "t0,t1"}) == "TPU pod"
    assert processes.find_cluster({"TPU_WORKER_HOSTNAMES": "t0"}) is None


def test_more_processes_than_records_or_uneven_devices_are_refused(monkeypatch):
    parallel.check_processes(1, "training")
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(UserError, match="training data has 2 records for 3 processes"):
        parallel.check_processes(2, "training")
    with pytest.raises(UserError, match="this process has 8 of the 8 devices of 3 processes"):
        parallel.check_processes(3, "training")


def test_a_notice_of_maintenance_asks_to_stop(monkeypatch):
    events = iter([None, "NONE", "TERMINATE_ON_HOST_MAINTENANCE"])
    monkeypatch.setattr(signals, "metadata", lambda path: next(events))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(signals, "MAINTENANCE_SECONDS", 0.01)
    said = queue.Queue()
    monkeypatch.setattr(signals, "say", said.put)
    with signals.Signals() as stopped:
        assert "maintenance (TERMINATE_ON_HOST_MAINTENANCE)" in said.get(timeout=30)
        assert stopped()


def test_the_first_signal_is_noted_and_the_second_acts():
    with signals.Signals() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        assert stopped.name == "SIGINT"
        previous = signal.getsignal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == previous != stopped._note


def test_data_sets_are_told_apart():
    data = digits.get_config().data
    train, again, other = (
        sources.fingerprint(sources.open_source(data, split))
        for split in ("train", "train", "test")
    )
    assert train == again != other
    assert train.startswith("1437 records ")
