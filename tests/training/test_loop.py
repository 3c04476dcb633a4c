"""The whole loop: stop, resume, kill, non-finite loss, bad input; train.py as a user runs it."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import optax
import pytest
from conftest import QUICK, ROOT, TINY
from jax.sharding import SingleDeviceSharding

from configs import digits, folder
from effnet_jax import cli
from effnet_jax import config as config_lib
from effnet_jax.checkpoint import FOLDER, Checkpoints
from effnet_jax.errors import Interrupted, NonFiniteLossError, UserError
from effnet_jax.report import details
from effnet_jax.run import files, writers
from effnet_jax.run.processes import ALONE
from effnet_jax.run.workdirs import Workdir
from effnet_jax.tools import train as train_tool
from effnet_jax.training import setup, supervisor
from effnet_jax.training import step as training_step
from effnet_jax.training.clock import Clock
from effnet_jax.training.setup import Run
from effnet_jax.training.state import abstract_state

COMMAND = [
    sys.executable,
    str(ROOT / "train.py"),
    f"--config={ROOT}/configs/digits.py:{QUICK}",
    "--config.epochs=2",
    "--config.eval_epochs=1",
    "--config.log_steps=10",
]


def environment() -> dict[str, str]:
    """As a user's: one CPU device. Programs that run a few times are compiled fast, not well."""
    return {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def start(workdir: pathlib.Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *arguments],
        env=environment(),
        cwd=workdir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workdir: pathlib.Path, *arguments: str) -> tuple[int, str]:
    process = start(workdir, *arguments)
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def final_state(workdir: pathlib.Path, step: int = 44):
    config = config_lib.load(workdir)
    _, _, shapes = abstract_state(config, 1437)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        here = SingleDeviceSharding(jax.devices()[0])
        return jax.device_get(checkpoints.restore(shapes, here, step))


def assert_bit_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run from start to end, as the user's command."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, output = finish(workdir)
    assert code == 0, output
    return workdir, output


def test_a_run_leaves_everything_it_should(uninterrupted):
    workdir, output = uninterrupted
    assert "starting at step 0 of 44" in output
    assert "step 10/44" in output
    assert "data wait" in output
    assert "ema" in output
    assert "Traceback" not in output
    rows = writers.read_metrics(workdir)
    train = [row for row in rows if "train_loss" in row]
    assert [row["step"] for row in train] == [10, 20, 30, 40, 44]
    assert all(row["resident_mib"] > 10 for row in train)
    assert train[-1]["train_loss"] < train[0]["train_loss"]
    evaluations = [row for row in rows if "val/ema/top1" in row]
    assert [row["step"] for row in evaluations] == [22, 44]
    kinds = ("top1", "top5", "loss", "mean_per_class", "count")
    metrics = {f"val/{w}/{m}" for w in ("raw", "ema") for m in kinds}
    assert metrics <= evaluations[-1].keys()
    page = (workdir / "mistakes.html").read_text()  # Of the last evaluation, averaged weights.
    wrong = round(360 * (1 - evaluations[-1]["val/ema/top1"]))
    assert f"<p>{wrong} mistakes" in page and page.count("data:image/jpeg") == min(wrong, 100)
    assert "run at step 44, val/ema" in page
    assert all((workdir / name).stat().st_size for name in details.FILES)
    assert "val/ema by class: per_class.csv" in output
    run = json.loads((workdir / "runs.jsonl").read_text())
    assert run["versions"]["jax"] == jax.__version__
    assert run["device"] == "cpu"
    assert {"commit", "python", "time", "cpus"} <= run.keys()
    assert run["data"].keys() == {"train", "val"}
    assert run["data"]["val"].startswith("360 records ")
    config = json.loads((workdir / "config.json").read_text())
    assert config["epochs"] == 2.0
    assert config["model"]["num_classes"] == 10
    classes = json.loads((workdir / "classes.json").read_text())
    assert classes == [str(i) for i in range(10)]
    # A checkpoint says itself what its weights belong to.
    manifest = json.loads((workdir / "checkpoints" / "44" / "manifest.json").read_text())["content"]
    assert manifest["classes"] == classes
    assert all(manifest[key] == config[key] for key in ("model", "preprocess"))
    lines = (workdir / "parameters.csv").read_text().splitlines()
    assert "stem/norm/scale,8,0,1,0" in lines
    assert "stem/conv/kernel,3x3x3x8,1,1,0" in lines
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = [path for path in (workdir / "tensorboard").iterdir() if path.stat().st_size > 500]
    assert events


def test_the_same_command_again_shows_the_result_and_changes_nothing(uninterrupted):
    workdir, first = uninterrupted
    before = final_state(workdir)
    code, output = finish(workdir)
    assert code == 0
    table = lambda text: [line for line in text.splitlines() if "│" in line]  # noqa: E731
    assert table(output) == table(first)
    assert_bit_equal(before, final_state(workdir))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_and_resume_is_bit_equal(uninterrupted, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.epochs=2")
    metrics = workdir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and '"step": 10' in metrics.read_text(), process)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == cli.INTERRUPTED == 75, output
    assert "saving a checkpoint" in output
    assert "Run the same command again to resume" in output
    assert "Traceback" not in output
    steps = sorted(int(path.name) for path in (workdir / FOLDER).iterdir())
    assert 10 <= steps[-1] < 44
    code, output = finish(workdir)
    assert code == 0, output
    assert f"resuming at step {steps[-1]} of 44" in output
    assert_bit_equal(final_state(workdir), final_state(uninterrupted[0]))
    rows = [row["step"] for row in writers.read_metrics(workdir) if "train_loss" in row]
    assert rows == sorted(set(rows))


def test_killed_while_saving_loses_no_committed_checkpoint_and_ends_bit_equal(
    uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    folder = workdir / FOLDER
    arguments = ("--config.checkpoint.save_epochs=0.05", "--config.checkpoint.keep_newest=3")

    def listing() -> set[str]:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def committed() -> set[int]:
        return {int(name) for name in listing() if name.isdigit()}

    process, wanted = start(workdir, *arguments), 3
    # A save under way shows as a folder with a temporary name. Any moment within it will do.
    wait_until(
        lambda: (
            max(committed(), default=0) >= wanted and any(not name.isdigit() for name in listing())
        ),
        process,
    )
    process.kill()
    process.wait()
    assert any(not name.isdigit() for name in listing()), "it was killed between two saves"
    assert committed(), "a committed checkpoint was there, and is lost"
    reached = max(committed())
    # Of a copy: what the killed save left is for the next start to remove.
    copy = shutil.copytree(workdir, tmp_path / f"copy_{reached}")
    assert final_state(copy, reached).step == reached
    code, output = finish(workdir, *arguments)
    assert code == 0, output
    assert f"resuming at step {reached} of 44" in output
    assert_bit_equal(final_state(workdir), final_state(uninterrupted[0]))


def test_a_second_run_compiles_nothing_anew(uninterrupted, tmp_path):
    seconds = []
    cache = tmp_path / "cache"
    for name in ("first", "second"):
        process = subprocess.run(
            [*COMMAND, f"--workdir={tmp_path / name}", "--config.epochs=0.1"],
            env={**environment(), "JAX_COMPILATION_CACHE_DIR": str(cache)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr
        line = next(line for line in process.stderr.splitlines() if "first step done" in line)
        seconds.append(float(line.split()[3]))
        if name == "first":
            entries = {path.name for path in cache.iterdir() if path.name.endswith("-cache")}
    assert entries
    assert {path.name for path in cache.iterdir() if path.name.endswith("-cache")} == entries
    assert seconds[1] < seconds[0]


def test_evaluations_go_by_name_and_hooks_see_every_step(tiny, one_device, tmp_path):
    tiny.epochs = 1.0
    tiny.evaluations.few = config_lib.evaluation(("ema",), 0.5, eval_split="test[:50]")
    tiny.checkpoint.best_metric = "few/ema/top1"
    seen = []

    def hook(step, state, metrics):
        seen.append((step, int(state.step), float(metrics["count"])))

    _, scores = supervisor.train_and_evaluate(tiny, tmp_path, [hook])
    assert seen == [(step, step, 64.0) for step in range(1, 23)]
    assert (scores["few/ema/count"], scores["val/raw/count"], scores["val/ema/count"]) == (
        50,
        360,
        360,
    )
    rows = [row for row in writers.read_metrics(tmp_path) if "few/ema/top1" in row]
    assert [row["step"] for row in rows] == [11, 22]
    assert ["val/ema/top1" in row for row in rows] == [False, True]


def test_a_signal_in_the_evaluation_saves_too(tiny, one_device, tmp_path, monkeypatch):
    from effnet_jax import evaluation

    original = evaluation.Evaluator.__call__

    def interrupted(self, *arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **options)

    tiny.epochs = 1.0
    monkeypatch.setattr(evaluation.Evaluator, "__call__", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM after step 22"):
        supervisor.train_and_evaluate(tiny, str(tmp_path))
    assert (tmp_path / FOLDER / "22").is_dir()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.undo()
    _, scores = supervisor.train_and_evaluate(tiny, str(tmp_path))  # Makes up for it.
    evaluations = [row for row in writers.read_metrics(tmp_path) if "val/ema/top1" in row]
    assert [(row["step"], row["val/ema/top1"]) for row in evaluations] == [
        (22, scores["val/ema/top1"])
    ]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tiny, one_device, tmp_path, monkeypatch
):
    tiny.checkpoint.save_epochs = 0.25  # Every 5 steps.
    original = training_step.make_train_step

    def poisoned(*arguments):
        step = original(*arguments)

        def train_step(state, batch, seed):
            state, metrics = step(state, batch, seed)
            # The gradient was finite, the new weights are not: the loss shows it a step later.
            poison = jax.numpy.where(state.step == 15, jax.numpy.nan, 0.0)
            params = jax.tree.map(lambda x: x + poison, state.params)
            metrics["weight_norm"] = optax.tree.norm(params)
            return state.replace(params=params), metrics

        return train_step

    monkeypatch.setattr(training_step, "make_train_step", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"weight_norm is nan at step 15: .*: step 10$"):
        supervisor.train_and_evaluate(tiny, str(tmp_path))
    assert sorted(int(path.name) for path in (tmp_path / FOLDER).iterdir()) == [5, 10]
    assert np.isfinite(final_state(tmp_path, 10).params["stem"]["conv"]["kernel"]).all()


def test_a_state_split_over_a_mesh_is_saved_evaluated_and_restored_on_another(tmp_path):
    config = digits.get_config("resnet18,w=0.1,d=0.1,r=16")
    config.batch_size, config.eval_batch_size, config.mesh.model = 64, 512, 4
    config.epochs = 2.5 * 64 / 1437
    state, scores = supervisor.train_and_evaluate(config, str(tmp_path))
    config.mesh.model = 1
    again, same = supervisor.train_and_evaluate(config, str(tmp_path))
    assert scores["val/ema/count"] == 360
    assert again.step == 2
    assert same["val/ema/loss"] == pytest.approx(scores["val/ema/loss"], rel=1e-6)
    assert_bit_equal(jax.device_get(state), jax.device_get(again))
    for part, devices in ((state, 4), (again, 1)):
        for tree in (part.params, part.ema["params"]):
            kernel = tree["stage4"]["block1"]["conv2"]["kernel"]
            assert kernel.addressable_shards[0].data.nbytes == kernel.nbytes // devices


def test_bad_input_is_refused_before_the_workdir_is_touched(tiny, tmp_path, monkeypatch):
    def fails(message, **changes):
        config = tiny.copy_and_resolve_references()
        config.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=message):
            supervisor.train_and_evaluate(config, str(tmp_path / "new"))
        assert not (tmp_path / "new").exists()

    fails("batch_size=60 is not divisible by 8 devices", batch_size=60)
    fails("eval_batch_size=12 .* 8 devices", eval_batch_size=12)
    fails("8 devices in 3 microbatches each .* use 72", accumulation_steps=3)
    group = {"model.batch_norm_scope": "group", "model.batch_norm_group": 3}
    fails("batch_norm_group=3 does not divide the 8 examples", **group)
    fails("config.model.remat", **{"model.remat": "blocks"})
    fails("less than one step", epochs=0.01)
    fails("config.log_steps must be at least 1; got 0", log_steps=0)
    fails("config.seed must be at least 0", seed=-1)
    fails("label_smoothing must be at least 0 and at most", **{"loss.label_smoothing": 3.0})
    fails("learning_rate must be at least 0", **{"optimizer.rmsprop.learning_rate": -1.0})
    fails("config.data.threads must be at least 1", **{"data.threads": 0})
    fails("num_classes=9, and the data has 10", **{"model.num_classes": 9})
    fails("total stride 16", **{"model.resolution": 15})
    fails("did you mean: rmsprop", **{"optimizer.name": "rmsprob"})
    fails("no rule covers", **{"optimizer.learning_rate_rules": (("stem/.*", 1.0),)})
    fails("bicubic", **{"preprocess.interpolation": "bicubik"})
    fails("config.profile.steps=40:50 ends with step 49", **{"profile.steps": "40:50"})
    fails("did you mean: wandb", writers=("wandbb",))
    fails("no program 'nosuch' on PATH", **{"notify.command": "nosuch"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails("'mlflow', whose package is not installed", writers=("mlflow",))
    monkeypatch.undo()
    fails(
        "no split 'training' in data set 'digits', which has test, train",
        **{"data.train_split": "training"},
    )


def test_resume_never_wants_an_empty_workdir(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    tiny.checkpoint.resume = "never"
    with pytest.raises(UserError, match="not empty"):
        supervisor.train_and_evaluate(tiny, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("scope", "devices", "sizes"),
    [("reference", 16, (32, 128)), ("reference", 4, (32, 64)), ("global", 16, None)],
)
def test_other_groups_of_batch_norm_at_a_resume_are_reported(
    tmp_path, monkeypatch, scope, devices, sizes
):
    config, said = config_lib.get_config(), []
    config.batch_size, config.model.batch_norm_scope = 256, scope
    config_lib.save(config, tmp_path / "config.json")
    monkeypatch.setattr(setup, "say", said.append)
    setup._check_batch_norm(Workdir(tmp_path), config)
    for earlier in (8, devices):
        with open(tmp_path / "runs.jsonl", "a") as file:
            file.write(json.dumps({"devices": earlier}) + "\n")
        setup._check_batch_norm(Workdir(tmp_path), config)
    assert len(said) == (sizes is not None)
    if sizes:
        new, old = sizes
        start = f"warning: BatchNorm's groups now have {new} examples, on 8 device(s); the run in "
        assert said[0].startswith(f"{start}{tmp_path} had groups of {old}, on {devices}. ")
        assert said[0].endswith(f"--config.model.batch_norm_group={old}")


def test_a_workdir_that_another_run_has_is_left_alone(tiny, tmp_path):
    with files.Lock(tmp_path / files.RUN_LOCK):
        before = {path.name for path in tmp_path.iterdir()}
        with pytest.raises(UserError, match=f"process {os.getpid()} on host .* is running"):
            supervisor.train_and_evaluate(tiny, str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == before


def test_a_run_that_goes_on_keeps_its_place_in_the_data(uninterrupted, quick):
    workdir = uninterrupted[0]
    before = (workdir / "config.json").read_text()
    for message, key, value in (
        ("config.batch_size=64, and now it is 32", "batch_size", 32),
        ("config.seed=0, and now it is 1", "seed", 1),
        ("is at step 44, past the 22 steps of config.epochs=1", "epochs", 1.0),
    ):
        config = quick.copy_and_resolve_references()
        config[key] = value
        with pytest.raises(UserError, match=message):
            supervisor.train_and_evaluate(config, str(workdir))
    assert (workdir / "config.json").read_text() == before


def test_a_run_goes_on_with_its_own_classes_and_records_alone(tmp_path, capsys):
    """Labels are places in the sorted names: one folder more or less would shift them."""
    config, root, workdir = folder.get_config(TINY), tmp_path / "data", tmp_path / "run"
    config.model.stem_stride = 1
    config.data.data_dir, config.batch_size, config.eval_batch_size = str(root), 8, 8
    for name in ("cat", "cow", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(root / name / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))

    # Of another folder nothing is held out.
    config.evaluations.other = config_lib.evaluation(data_dir=str(tmp_path / "other"))
    shutil.copytree(root, tmp_path / "other")

    def prepare() -> Run:
        return setup.prepare(config, Workdir(workdir), ALONE, Clock())

    run = prepare()
    assert {name: len(source) for name, source in run.evaluations.sources.items()} == {
        "val": 3,
        "other": 12,
    }
    run.write_files(0)
    del config.evaluations.other
    assert json.loads((workdir / "runs.jsonl").read_text())["records"] == 9
    prepare()
    assert "have changed" not in capsys.readouterr().err
    cv2.imwrite(str(root / "cat" / "1.png"), np.ones((8, 8, 3), np.uint8))
    prepare()
    assert "warning: the training images have changed since" in capsys.readouterr().err
    (root / "cat").rename(root / "zebra")
    message = "now there are 3: the data lacks cat; the run lacks zebra.*init.weights="
    with pytest.raises(UserError, match=message):
        prepare()
    (root / "zebra").rename(root / "cat")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "9.png")
    with pytest.raises(UserError, match="has 9 training images, and now there are 10"):
        prepare()


def test_a_workdir_of_another_architecture_shows_the_difference(uninterrupted, tiny):
    workdir = uninterrupted[0]
    before = (workdir / "config.json").read_text()
    tiny.model.width = 0.5
    with pytest.raises(UserError, match=r"another model:\n.*checkpoint .*, model "):
        supervisor.train_and_evaluate(tiny, str(workdir))
    tiny.model.width, tiny.fine_tune.freeze = 0.1, "stem"
    message = r"has config\.fine_tune\.freeze='', and now it is 'stem': .*init\.weights="
    with pytest.raises(UserError, match=message):
        supervisor.train_and_evaluate(tiny, str(workdir))
    assert (workdir / "config.json").read_text() == before


def test_errors_reach_the_user_without_a_traceback(tmp_path):
    def fails(message, *command):
        process = subprocess.run(
            [sys.executable, *map(str, command), f"--workdir={tmp_path / 'new'}"],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode == cli.BAD_INPUT == 2, process.stderr
        assert message in process.stderr
        assert "Traceback" not in process.stderr
        assert not (tmp_path / "new").exists()

    imagenet = f"--config={ROOT}/configs/imagenet.py"
    missing = f"--config.data.data_dir={tmp_path}"
    fails("effnet-jax prepare_imagenet --from", ROOT / "train.py", imagenet, missing)
    fails("no run in", ROOT / "eval.py")
    fails("unknown config key", ROOT / "train.py", "--config.optimiser.name=sgd")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("config.py has every key", ["--config.xyzzy=1"]),
        ("two numbers", ["--config.preprocess.crop_area=3"]),
        ("learning_rate", ["--config.optimizer.rmsprop.learning_rat=1"]),
        ("batch_size", ["--config.batch_size=many"]),
        ("b8", [f"--config={ROOT}/configs/imagenet.py:b9"]),
        (r"no config file nowhere\.py", ["--config=nowhere.py:b0"]),
        ("unexpected argument", ["digits"]),
    ],
)
def test_wrong_flags_are_refused_with_the_remedy(message, arguments):
    with pytest.raises(UserError, match=message):
        config_lib.validate(train_tool.PARSER.parse_args(arguments).config)
