"""Launching: shares of the machine, failures that harm nobody else, kills that lose nothing."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from configs import cluttered_digits
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.sweeps import launch, memory
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.schedule import make_plan

# Stands in for train.py: "trains" for five steps of a tenth of a second, keeps its place in a file,
# and saves and stops at SIGTERM. What the launcher needs of a run, without JAX.
FAKE = """
import json, pathlib, signal, sys, time
config, workdir = (arg.partition("=")[2] for arg in sys.argv[1:])
config = json.loads(pathlib.Path(config.partition(":")[2]).read_text())
workdir = pathlib.Path(workdir)
workdir.mkdir(parents=True, exist_ok=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
place = workdir / "place"
start = int(place.read_text()) if place.exists() else 0
with open(workdir / "steps", "a") as steps:
    for step in range(start + 1, 6):
        if config["seed"] == 13:
            print("broken", "beyond", "repair", sep="\\n")
            sys.exit(3)
        time.sleep(0.1)
        steps.write(f"{step} ")
        place.write_text(str(step))
        if stopped:
            sys.exit(75)
metrics = [{"step": 5, "epoch": 1.0, "images_per_second": 320.0}]
score = 0.5 + config["seed"] / 100
metrics.append({"step": 5, "raw_top1": score, "raw_top5": 1.0, "ema_top1": score, "ema_top5": 1.0,
                "ema_count": 10})
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in metrics))
run = {"versions": {"jax": "1", "jaxlib": "1"}, "device": "cpu", "devices": 1, "cpus": 2,
       "python": "3", "commit": "abc", "time": "2026-01-01T00:00:00+00:00"}
(workdir / "runs.jsonl").write_text(json.dumps(run) + "\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder and a launcher of runs that only look like training."""
    script = tmp_path / "train.py"
    script.write_text(FAKE)
    original = launch.command
    monkeypatch.setattr(
        launch, "command", lambda *args: [sys.executable, str(script), *original(*args)[2:]]
    )
    return Folder(tmp_path / "sweep")


def small(**changes):
    config = cluttered_digits.get_config()
    config.model.num_classes = 10
    config.update(changes)
    return config


def run(folder, plan, parallel=2):
    with folder.locked() as lock:
        folder.write_configs(plan)
        return launch.run_all(
            plan,
            folder,
            lambda names: launch.Local(folder, names, launch.slots(parallel), lock),
            folder.root / "results.csv",
        )


def table(folder) -> list[dict[str, str]]:
    with open(folder.root / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key not in ("wall_minutes", "time")} for row in rows]


def test_runs_share_the_machine_and_one_table(fake):
    plan = make_plan(small(), "seeds:2,depth:1,2")
    assert run(fake, plan) == {}
    rows = table(fake)
    assert [row["name"] for row in rows] == [planned.run.name for planned in plan]
    assert [float(row["ema_top1"]) for row in rows] == [0.5, 0.5, 0.51, 0.51]
    for row, planned in zip(rows, plan, strict=True):
        assert int(row["multiply_adds"]) == planned.cost.multiply_adds
        assert int(row["parameters"]) == planned.cost.parameters
        # 5 steps of 64 images at 320 images a second.
        assert float(row["train_minutes"]) == pytest.approx(1 / 60, abs=1e-3)
    assert rows[0]["threads"] == str(len(launch.available_cores()) // 2)
    log = fake.log("depth_1_seed0").read_text()
    assert "on cores [" in log and "saved.py:" in log  # What it ran on, and how to run it again.
    begun = time.monotonic()
    assert run(fake, plan) == {}  # Nothing is left to do.
    assert time.monotonic() - begun < 0.5 and table(fake) == rows


def test_a_failed_run_is_listed_and_the_others_go_on(fake, capfd):
    plan = make_plan(small(seed=12), "seeds:3,depth:1")
    assert run(fake, plan) == {"depth_1_seed13": "the loss was not finite"}
    assert [row["seed"] for row in table(fake)] == ["12", "14"]
    assert "broken\nbeyond\nrepair" in capfd.readouterr().err
    assert list(run(fake, plan)) == ["depth_1_seed13"]  # Tried again, alone.


def test_a_run_that_has_begun_keeps_its_config(fake):
    run(fake, make_plan(small(), "depth:1"))
    with pytest.raises(UserError, match=r"has begun with another config \(config.epochs"):
        run(fake, make_plan(small(epochs=9.0), "depth:1"))


def test_an_interrupted_sweep_stops_its_runs_and_goes_on(fake):
    plan = make_plan(small(), "seeds:2,depth:1,2")
    with pytest.raises(Interrupted, match="4 of 4 runs to do"):
        seen = []

        def launcher(names):
            local = launch.Local(fake, names, launch.slots(2), lock)
            poll = local.poll

            def poll_and_interrupt():
                seen.append(poll())
                if len(seen) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return seen[-1]

            local.poll = poll_and_interrupt
            return local

        with fake.locked() as lock:
            fake.write_configs(plan)
            launch.run_all(plan, fake, launcher, fake.root / "results.csv")
    assert run(fake, plan) == {}
    for planned in plan:  # No step was done twice, none was left out.
        assert (fake.workdir(planned.run.name) / "steps").read_text() == "1 2 3 4 5 "


@pytest.mark.skipif(sys.platform != "linux", reason="runs follow their sweep's death on Linux")
def test_a_killed_sweep_started_again_ends_in_the_same_table(fake, tmp_path):
    plan = make_plan(small(), "seeds:2,depth:1,2")
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "sweeps")!r}, {str(ROOT / "tests")!r}]
import test_launch
from effnet_jax.sweeps import launch
original, script = launch.command, {str(tmp_path / "train.py")!r}
launch.command = lambda *args: [sys.executable, script, *original(*args)[2:]]
folder = test_launch.Folder({str(fake.root)!r})
test_launch.run(folder, test_launch.make_plan(test_launch.small(), "seeds:2,depth:1,2"))
"""
    sweep = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (fake.workdir(plan[0].run.name) / "place").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    assert run(fake, plan) == {}  # Waits until the orphans have saved and stopped.
    for planned in plan:
        assert (fake.workdir(planned.run.name) / "steps").read_text() == "1 2 3 4 5 "
    killed, whole = table(fake), Folder(tmp_path / "whole")
    run(whole, plan)
    assert killed == table(whole)


def test_two_sweeps_do_not_work_in_one_folder(fake):
    with (
        fake.locked(),
        pytest.raises(UserError, match=f"another sweep works in .*{os.getpid()}"),
        Folder(fake.root).locked(),
    ):
        pass


def test_submitit_s_local_executor_runs_the_same_sweep(fake, monkeypatch):
    submitit = pytest.importorskip("submitit")
    plan = make_plan(small(), "seeds:2,depth:1")
    fake.write_configs(plan)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    executor = submitit.AutoExecutor(fake.root / "slurm", cluster="local")
    # The job's own process has the real train.py; the stand-in goes along as the job's command.
    arguments = {planned.run.name: launch.command(fake, planned.run.name) for planned in plan}
    executor.update_parameters(timeout_min=5)

    class Job(launch.TrainJob):
        def __call__(self):
            launch.command = lambda folder, name: arguments[name]
            return super().__call__()

    monkeypatch.setattr(launch, "TrainJob", Job)
    results = fake.root / "results.csv"
    failed = launch.run_all(
        plan, fake, lambda names: launch.Submitted(fake, names, executor), results
    )
    assert failed == {}
    assert [row["seed"] for row in table(fake)] == ["0", "1"]
    assert set(json.loads((fake.root / "jobs.json").read_text())) == set(arguments)


def test_a_preempted_job_saves_and_asks_for_another_turn(fake):
    submitit = pytest.importorskip("submitit")
    plan = make_plan(small(), "depth:1")
    fake.write_configs(plan)
    job = launch.TrainJob(str(fake.root), "depth_1")
    import threading

    thread = threading.Thread(target=job)
    thread.start()
    while not (fake.workdir("depth_1") / "place").exists():
        time.sleep(0.02)
    again = job.checkpoint()
    thread.join()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert fake.done("depth_1") is None
    assert again.function() is None  # The next turn finishes it.
    assert (fake.workdir("depth_1") / "steps").read_text() == "1 2 3 4 5 "
    assert fake.done("depth_1")["ema_top1"] == 0.5


def test_a_table_that_cannot_be_written_stops_before_anything_starts(fake):
    with pytest.raises(UserError, match="is a folder"):
        fake.check_csv(fake.root.parent)
    with pytest.raises(UserError, match="can't write to --csv"):
        fake.check_csv(pathlib.Path("/proc/none/results.csv"))


def test_slurm_that_is_not_here_is_one_message(fake):
    with pytest.raises(UserError, match="SLURM can't be used here"):
        launch.slurm_executor(fake, 2, "no_such_parameter=1")


def test_slots_divide_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(launch, "available_cores", lambda: [0, 1, 2, 3, 5])
    monkeypatch.setattr(launch, "visible_gpus", list)
    assert [slot.cores for slot in launch.slots(2)] == [[0, 1], [2, 3]]
    assert len(launch.slots(None)) == 5
    assert launch.slots(2)[0].environment()["NPROC"] == "2"
    with pytest.raises(UserError, match="--parallel=6, and there are 5 cores"):
        launch.slots(6)
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["4", "5", "6", "7"])
    assert [slot.gpus for slot in launch.slots(2)] == ["4,5", "6,7"]
    assert launch.slots(None)[3].environment()["CUDA_VISIBLE_DEVICES"] == "7"
    with pytest.raises(UserError, match="4 GPUs: one run each"):
        launch.slots(5)


def test_models_too_large_for_the_memory_are_refused(monkeypatch):
    # Peaks of runs with a process of their own, jax 0.10.2 on 2 cores: 1.62 GiB at 1x, 2.84 GiB at
    # 4.2x by depth alone (a compilation each); see docs/scaling_study.md.
    assert memory.predict(small()) / 2**30 == pytest.approx(1.62, rel=0.2)
    deep = make_plan(small(), "depth:7.74")[0].config
    assert memory.predict(deep) / 2**30 == pytest.approx(2.84, rel=0.2)
    needs = []
    for batch_size in (6400, 12_800, 19_200):  # Where the activations decide: linear in the batch.
        needs.append(memory.predict(small(batch_size=batch_size)))
    assert needs[2] - needs[1] == pytest.approx(needs[1] - needs[0])
    assert needs[2] > 2 * needs[0]
    monkeypatch.setattr(memory, "available", lambda: 4 * 2**30)
    memory.check({"a": 2**31, "b": 2**31}, 2)
    with pytest.raises(UserError, match=r"run 'b' will need about 5.0 GiB.*there are 4.0.*--force"):
        memory.check({"a": 2**31, "b": 5 * 2**30}, 1)
    with pytest.raises(UserError, match=r"2 runs at a time may need 6.0 GiB.*lower --parallel"):
        memory.check({"a": 3 * 2**30, "b": 3 * 2**30}, 2)


def test_the_command_line_prints_the_plan_and_starts_nothing(tmp_path):
    command = [sys.executable, "-m", "effnet_jax.tools.sweep", "--sweep=methods", "--dry_run"]
    workdir = tmp_path / "sweep"
    result = subprocess.run(
        [*command, f"--workdir={workdir}", "--config.model.num_classes=10"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert "resolution_4x" in result.stdout and "1,937,584" in result.stdout
    assert not pathlib.Path(workdir).exists()
