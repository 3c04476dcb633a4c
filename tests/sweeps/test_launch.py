"""Launching: shares of the machine, failures that harm nobody else, kills that lose nothing."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from conftest import ROOT

from configs import cluttered_digits
from effnet_jax import __main__ as command
from effnet_jax import cli
from effnet_jax import config as config_lib
from effnet_jax.errors import Interrupted, RunsFailed, UserError
from effnet_jax.report import results
from effnet_jax.sweeps import launch
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.runs import make_schedule
from effnet_jax.tools import sweep, train

# Stands in for `effnet-jax train`, without JAX: "trains" for five steps of 50 ms, keeps its place
# in a file, and saves and stops at SIGTERM.
FAKE = """
import json, pathlib, signal, sys, time
config, workdir = (arg.partition("=")[2] for arg in sys.argv[1:])
config = json.loads(pathlib.Path(config).read_text())
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
        time.sleep(0.05)
        steps.write(f"{step} ")
        place.write_text(str(step))
        if stopped:
            sys.exit(75)
metrics = [{"step": 5, "epoch": 1.0, "images_per_second": 320.0}]
score = 0.5 + config["seed"] / 100
metrics.append({"step": 5, "epoch": 1.0, "val/ema/top1": score, "val/ema/count": 10.0,
                **({"far/raw/top1": 0.25} if config["epochs"] == 1 else {})})
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in metrics))
run = {"versions": {"jax": "1", "jaxlib": "1"}, "device": "cpu", "devices": 1, "cpus": 2,
       "python": "3", "commit": "abc", "time": "2026-01-01T00:00:00+00:00",
       "data": {"train": "90 records ab", "val": "10 records cd"}}
(workdir / "runs.jsonl").write_text(json.dumps(run) + "\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder of a sweep whose runs only look like training."""
    script = tmp_path / "train.py"
    script.write_text(FAKE)
    pretend(script, monkeypatch.setattr)
    return Folder(tmp_path / "sweep")


def pretend(script: pathlib.Path, setattr: Callable[[object, str, object], None]) -> None:
    """Has `script` in place of the command, and two cores on any machine."""
    original, cores = launch.command, launch.available_cores()
    setattr(launch, "command", lambda *args: [sys.executable, str(script), *original(*args)[4:]])
    setattr(launch, "available_cores", lambda: cores[:1] * 2)


def small(**changes):
    config = cluttered_digits.get_config()
    config.model.num_classes = 10
    config.update(changes)
    return config


def run(folder, text, parallel=2, csv=None, **changes):
    """Runs a sweep as its command does."""
    flags = [f"--workdir={folder.root}", f"--sweep={text}", f"--parallel={parallel}"]
    arguments = sweep.PARSER.parse_args(flags + ([f"--csv={csv}"] if csv else []))
    arguments.config = small(**changes)
    sweep.main(arguments)


def table(folder) -> list[dict[str, str]]:
    with open(folder.root / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key not in ("wall_minutes", "time")} for row in rows]


def steps(folder) -> list[str]:
    """The steps of each run, in the order in which they were done."""
    return [path.read_text() for path in folder.root.glob("runs/*/steps")]


def wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_runs_share_the_machine_and_one_table(fake):
    run(fake, "seeds:2,depth:1,2")
    rows, schedule = table(fake), make_schedule(small(), "seeds:2,depth:1,2")
    assert [row["name"] for row in rows] == [scheduled.run.name for scheduled in schedule]
    assert [float(row["val/ema/top1"]) for row in rows] == [0.5, 0.5, 0.51, 0.51]
    for row, scheduled in zip(rows, schedule, strict=True):
        assert int(row["multiply_adds"]) == scheduled.cost.multiply_adds
        assert int(row["parameters"]) == scheduled.cost.parameters
        # 5 steps of 64 images at 320 images a second.
        assert float(row["train_minutes"]) == pytest.approx(1 / 60, abs=1e-3)
    assert rows[0]["threads"] == "1"
    log = fake.log("depth_1_seed0").read_text()
    assert "on cores [" in log and "depth_1_seed0.json" in log  # How to run it again, and on what.
    before = fake.log("depth_1_seed0").stat()
    run(fake, "seeds:2,depth:1,2")  # Nothing is left to do.
    assert table(fake) == rows and fake.log("depth_1_seed0").stat() == before


def test_the_columns_are_the_evaluations_that_there_were(fake, capsys):
    run(fake, "epochs=1,2 seed=3")
    # Shown also where it is equal.
    assert capsys.readouterr().out.count("│ finished │ 53.00%") == 2
    assert [row["name"] for row in table(fake)] == ["epochs=1_seed=3", "epochs=2_seed=3"]
    assert [row["far/raw/top1"] for row in table(fake)] == ["0.25", ""]
    assert [row["val/ema/count"] for row in table(fake)] == ["10.0", "10.0"]
    done = json.loads((fake.workdir("epochs=1_seed=3") / "done.json").read_text())
    assert done["far/raw/top1"] == 0.25 and done["val/ema/top1"] == 0.53


def test_rows_have_what_the_sweep_changes_and_which_data_it_was(fake, capsys):
    run(fake, "optimizer.sgd.momentum=0.5,0.75 epochs=1 seed=3,4")
    key = "config.optimizer.sgd.momentum"
    assert [row[key] for row in table(fake)] == ["0.5", "0.5", "0.75", "0.75"]
    assert [row["config.epochs"] for row in table(fake)] == ["1.0"] * 4
    assert "config.seed" not in table(fake)[0]
    assert {row["train/identity"] for row in table(fake)} == {"90 records ab"}
    assert {row["val/identity"] for row in table(fake)} == {"10 records cd"}
    before, after = capsys.readouterr().out.split("4 runs in")[1:]
    header = next(line for line in before.splitlines() if line.startswith("┃"))
    assert header.strip("┃ ").replace("┃", "").split() == ["run", "momentum", "seed", "state"]
    same = "the same in all: width 0.4241, depth 0.1938, pixels 36, epochs 1.0"
    assert same in " ".join(before.split())
    assert "finished │ 53.00%" in after and "finished │ 54.00%" in after


def test_a_table_keeps_the_rows_of_runs_that_this_sweep_has_not(fake, tmp_path):
    csv, other = tmp_path / "all.csv", Folder(tmp_path / "other")
    run(fake, "depth:1,2", csv=csv)
    run(other, "epochs=1 seed=5", csv=csv)
    run(fake, "depth:2", csv=csv)  # A narrower sweep in the first's folder.
    (path := fake.root / "results.csv").write_text(csv.read_text())
    rows = table(fake)
    assert [row["name"] for row in rows] == ["depth_1", "epochs=1_seed=5", "depth_2"]
    assert rows[0]["far/raw/top1"] == "" and rows[1]["far/raw/top1"] == "0.25"
    assert [row["config.model.depth"] != "" for row in rows] == [True, False, True]
    # Another run of one name, as in a second workdir, is not the same run.
    path.write_text(path.read_text().replace("2026-01-01T00:00:00+00:00", "2026-01-02 00:00:00"))
    run(fake, "depth:2")
    names = [row["name"] for row in table(fake)]
    assert names == ["depth_1", "epochs=1_seed=5", "depth_2", "depth_2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data,top1\ndigits/test,0.9\n", "is not a results file of a sweep"),
        ("name;time\ndepth_1;22/11/2026 10:00\n", "line 2: time is '22/11/2026 10:00'"),
        ("name,time\ndepth_1,2026-01-01,3\n", "line 2 has more cells than"),
    ],
)
def test_a_table_that_would_be_damaged_stops_before_anything_starts(fake, text, message):
    (path := fake.root / "mine.csv").parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        run(fake, "depth:1", csv=path)
    assert path.read_text() == text and not (fake.root / "logs").exists()


def test_a_failed_run_is_listed_and_the_others_go_on(fake, capfd):
    with pytest.raises(RunsFailed, match=r"1 of 3 runs failed.*\ndepth_1_seed13: the loss was"):
        run(fake, "seeds:3,depth:1", seed=12)
    assert [row["seed"] for row in table(fake)] == ["12", "14"]
    assert "broken\nbeyond\nrepair" in capfd.readouterr().err
    before = [fake.log(f"depth_1_seed{seed}").stat().st_size for seed in (12, 13, 14)]
    with pytest.raises(RunsFailed, match="1 of 3"):
        run(fake, "seeds:3,depth:1", seed=12)
    after = [fake.log(f"depth_1_seed{seed}").stat().st_size for seed in (12, 13, 14)]
    assert [a > b for a, b in zip(after, before, strict=True)] == [False, True, False]


def test_a_finished_run_whose_results_a_crash_emptied_is_finished_again(fake):
    run(fake, "seed=1,2")
    before = table(fake)
    (fake.workdir("seed=1") / "done.json").write_text("")
    assert fake.done("seed=1") is None and fake.done("seed=2")
    run(fake, "seed=1,2")
    assert table(fake) == before and fake.done("seed=1")


def test_lengths_in_steps_are_in_the_table(fake):
    run(fake, "seed=1", epochs=None, steps=7)
    assert [(row["epochs"], row["steps"]) for row in table(fake)] == [("", "7")]
    (point,) = results.read([fake.root / "results.csv"]).points("here", "seed")
    assert "after 7 steps at batch" in results.describe([point])


def test_a_run_that_has_begun_keeps_its_config(fake):
    run(fake, "depth:1")
    with pytest.raises(UserError, match=r"was started with another config \(config.epochs"):
        run(fake, "depth:1", epochs=9.0)


def test_an_interrupted_sweep_stops_its_runs_and_goes_on(fake):
    def interrupt():
        wait_for(fake.workdir("depth_1_seed0") / "place")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match="4 of 4 runs to do"):
        run(fake, "seeds:2,depth:1,2")
    thread.join()
    assert len(steps(fake)) == 2 and "1 2 3 4 5 " not in steps(fake)  # Saved, and none started.
    run(fake, "seeds:2,depth:1,2")
    assert steps(fake) == ["1 2 3 4 5 "] * 4  # No step was done twice, none was left out.


@pytest.mark.skipif(sys.platform != "linux", reason="runs follow their sweep's death on Linux")
def test_a_killed_sweep_started_again_ends_in_the_same_table(fake, tmp_path):
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "sweeps")!r}, {str(ROOT / "tests")!r}]
import test_launch
test_launch.pretend({str(tmp_path / "train.py")!r}, setattr)
test_launch.run(test_launch.Folder({str(fake.root)!r}), "seeds:2,depth:1,2")
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(fake.workdir("depth_1_seed0") / "place")
    process.kill()
    process.wait()
    run(fake, "seeds:2,depth:1,2")  # Waits until the orphans have saved and stopped.
    assert steps(fake) == ["1 2 3 4 5 "] * 4
    whole = Folder(tmp_path / "whole")
    run(whole, "seeds:2,depth:1,2")
    assert table(fake) == table(whole)


def test_two_sweeps_do_not_work_in_one_folder(fake):
    with (
        fake.lock(),
        pytest.raises(UserError, match=f"another sweep .*{os.getpid()}.* is running in"),
        Folder(fake.root).lock(),
    ):
        pass


def test_submitit_s_local_executor_runs_the_same_sweep(fake, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    executor = submitit.AutoExecutor
    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: executor(folder, "local"))
    # The job's own process has the real command; the stand-in goes along as the job's.
    names = ("depth_1_seed0", "depth_1_seed1")
    commands = {name: launch.command(fake, name) for name in names}

    class Job(launch.Job):
        def __call__(self):
            launch.command = lambda folder, name: commands[name]
            return super().__call__()

    monkeypatch.setattr(launch, "Job", Job)
    schedule, results = make_schedule(small(), "seeds:2,depth:1"), fake.root / "results.csv"
    fake.write_configs(schedule)
    with launch.slurm(fake, list(names), 2, "timeout_min=5") as jobs:
        assert launch.follow(schedule, fake, jobs, results) == {}
    assert [row["seed"] for row in table(fake)] == ["0", "1"]
    assert set(json.loads((fake.root / "jobs.json").read_text())) == set(names)


def test_a_preempted_job_saves_and_asks_for_another_turn(fake):
    submitit = pytest.importorskip("submitit")
    fake.write_configs(make_schedule(small(), "depth:1"))
    job, again = launch.Job(str(fake.root), "depth_1"), []
    previous = signal.signal(signal.SIGUSR2, lambda *_: again.append(job.checkpoint()))

    def preempt():
        wait_for(fake.workdir("depth_1") / "place")
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert job() == "interrupted, and saved"  # As submitit does, a signal interrupts it.
    thread.join()
    signal.signal(signal.SIGUSR2, previous)
    assert isinstance(again[0], submitit.helpers.DelayedSubmission)
    assert fake.done("depth_1") is None
    assert again[0].function() is None  # The next turn finishes it.
    assert steps(fake) == ["1 2 3 4 5 "]
    assert fake.done("depth_1")["val/ema/top1"] == 0.5


def test_a_table_that_cannot_be_written_stops_before_anything_starts(fake):
    missing = ("/proc/none/results.csv", "No such file")
    for path, reason in ((fake.root.parent, "Is a directory"), missing):
        with pytest.raises(UserError, match=f"can't write to --csv={path}: {reason}"):
            run(fake, "depth:1", csv=path)
    assert not (fake.root / "logs").exists()


def test_slurm_that_is_not_here_is_one_message(fake):
    with (
        pytest.raises(UserError, match="SLURM can't be used here"),
        launch.slurm(fake, ["a"], 2, "no_such_parameter=1"),
    ):
        pass


def test_slots_divide_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(launch, "available_cores", lambda: [0, 1, 2, 3, 5])
    monkeypatch.setattr(launch, "visible_gpus", list)
    assert [slot.cores for slot in launch.slots(2)] == [[0, 1], [2, 3]]
    assert len(launch.slots(None)) == 5
    assert launch.slots(2)[0].environment()["NPROC"] == "2"
    with pytest.raises(UserError, match="--parallel=6 is more than the 5 available cores"):
        launch.slots(6)
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["4", "5", "6", "7"])
    assert [slot.gpus for slot in launch.slots(2)] == ["4,5", "6,7"]
    assert launch.slots(None)[3].environment()["CUDA_VISIBLE_DEVICES"] == "7"
    with pytest.raises(UserError, match="--parallel=5 is more than the 4 GPUs"):
        launch.slots(5)


def test_the_command_line_prints_the_schedule_and_starts_nothing(tmp_path, monkeypatch, capsys):
    flags = ["--sweep=methods", "--dry_run", "--config.model.num_classes=10"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "tune_process", lambda: None)  # It would start the tests again.
    monkeypatch.setattr(sys, "argv", ["effnet-jax", "sweep", f"--workdir={tmp_path}/a", *flags])
    command.main()
    out = capsys.readouterr().out
    assert "resolution_4x" in out and "1,937,584" in out
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [".", "lr=0.1,wd=1e-5", "a:b c"])
def test_a_run_s_command_reads_the_config_that_was_written(tmp_path, name):
    (scheduled,) = make_schedule(small(), "augment.erase_area=(0.1,0.2)")
    folder = Folder(tmp_path / name)
    folder.write_configs([scheduled])
    python, *module, tool, config, workdir = launch.command(folder, scheduled.run.name)
    assert [python, *module, tool] == [sys.executable, "-m", "effnet_jax", "train"]
    args = train.PARSER.parse_args([config, workdir])
    assert config_lib.to_dict(args.config) == config_lib.to_dict(scheduled.config)
    assert args.config.augment.erase_area == (0.1, 0.2)
    assert args.workdir == str(folder.workdir(scheduled.run.name))
