"""Runs in a bucket on this machine: the same bits as on a disk, also when requests fail."""

import json
import os
import pathlib
import sys
import threading
import time

import jax
import numpy as np
import pytest

pytest.importorskip("gcp_storage_emulator")
# Gcsfs reads it when it is imported: else it asks the real service what kind a bucket is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("gcsfs")

from bucket_server import BUCKET, RESET, Bucket

import effnet_jax
from configs import digits
from effnet_jax import checkpoint, csv_rows, weights
from effnet_jax import config as config_lib
from effnet_jax.errors import SaveFailed, UserError
from effnet_jax.report import results
from effnet_jax.run import buckets, files, manifest, workdirs, writers
from effnet_jax.run.processes import ALONE
from effnet_jax.tools import eval as eval_tool
from effnet_jax.tools import train as train_tool

MODEL = "resnet18,w=0.1,d=0.1,r=16"  # Compiles in less time than TINY.


@pytest.fixture(scope="module")
def server():
    """TensorStore reads the address of a server once in a process."""
    with Bucket() as server, pytest.MonkeyPatch.context() as patch:
        for key, value in server.environment.items():
            patch.setenv(key, value)
        yield server


@pytest.fixture
def bucket(server, monkeypatch):
    """The server without faults and with an empty bucket; libraries give up after a second."""
    server.reset()
    monkeypatch.setattr(buckets, "RETRIES", 1.0)
    monkeypatch.setattr(workdirs, "BEAT", 0.2)
    monkeypatch.setattr(workdirs, "PATIENCE", 1.0)
    yield server
    server.reset()


@pytest.fixture
def said(monkeypatch):
    lines = []
    for module in (workdirs, checkpoint, writers):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def experiment(epochs: float = 1.0):
    config = digits.get_config(MODEL)
    config.batch_size, config.eval_batch_size, config.log_steps = 64, 128, 5
    config.epochs, config.checkpoint.save_epochs = epochs, 1.0
    config.evaluations.val.weights = ("ema",)
    return config


def assert_same(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def rows(workdir) -> list[dict]:
    timed = {"images_per_second", "data_wait", "resident_mib", "seconds_left"}
    timed |= {"step_seconds", "step_seconds_max", "own_seconds"}
    with workdirs.opened(workdir, writes=False) as place:
        found = writers.read_metrics(place.folder)
    return [{key: row[key] for key in row.keys() - timed} for row in found]


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, tmp_path, capsys):
    local, remote = tmp_path / "run", f"gs://{BUCKET}/some/run"
    expected, _ = effnet_jax.train(experiment(1.0), str(local))
    effnet_jax.train(experiment(0.5), remote)
    names = bucket.names()
    assert "some/run/run.lock" not in names
    steps = {name.split("/")[3] for name in names if "checkpoints" in name}
    assert steps == {"11"}
    for step in steps:
        assert f"some/run/checkpoints/{step}/{manifest.NAME}" in names

    state, _ = effnet_jax.train(experiment(1.0), remote)  # Resumes.
    assert int(state.step) == 22
    assert_same(expected, state)
    # Another start begins another window of steps.
    for one, other in ((rows(local)[i], rows(remote)[i]) for i in (0, 1, -1)):
        assert one == other
    top = {path.name for path in local.iterdir()} - {"checkpoints", "tensorboard"}
    names = bucket.names()
    assert {f"some/run/{name}" for name in top} <= {*names}
    assert sum(name.startswith("some/run/tensorboard/") for name in names) == 2  # Two starts.
    assert not [name for name in names if ".tmp" in name]

    # Whoever reads weights reads them there; a checkpoint by itself, and a copy of a file of them.
    for source in (remote, f"{remote}/checkpoints/22"):
        assert_same(weights.load(local).variables, weights.load(source).variables)
    weights.save(tmp_path / "w.safetensors", weights.load(local))
    buckets.Folder(remote).write("w.safetensors", (tmp_path / "w.safetensors").read_bytes())
    found = weights.load(f"{remote}/w.safetensors")
    assert_same(weights.load(local).variables, found.variables)

    results = []
    for workdir in (remote, local):
        args = eval_tool.PARSER.parse_args([f"--workdir={workdir}"])
        args.processes = ALONE
        eval_tool.main(args)
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert results[0] == results[1]


def made(step: int) -> dict:
    return {"params": {"w": jax.numpy.arange(5000.0) + step}, "ema": jax.numpy.ones(3)}


def restored(checkpoints):
    state = made(0)
    return checkpoints.restore(
        jax.eval_shape(lambda: state), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )


def opened(folder: str = "run", **options) -> checkpoint.Checkpoints:
    return checkpoint.Checkpoints(
        f"gs://{BUCKET}/{folder}", digits.get_config().checkpoint, **options
    )


def once(status: int, every: int):
    """A fault of one request in `every`."""
    count = iter(range(10**6))
    return lambda method, path: status if next(count) % every == every - 1 else None


@pytest.mark.parametrize("status", [429, 503, RESET])
def test_a_request_that_fails_is_tried_again(bucket, said, status):
    buckets.RETRIES = 20.0
    bucket.fault = once(status, 40)
    with opened() as checkpoints:
        checkpoints.save(5, made(5))
        checkpoints.wait()
        assert checkpoints.steps() == [5]
        assert_same(restored(checkpoints), made(5))
    assert not said


def test_a_save_that_a_bucket_refuses_does_not_stop_the_run(bucket, said):
    with opened() as checkpoints:
        checkpoints.save(5, made(5))
        checkpoints.settle()
        with bucket.failing(403, "POST", "/d/"):  # TensorStore's data.
            checkpoints.save(10, made(10))
            checkpoints.settle()
        assert "checkpoint 10 could not be saved" in said[-1] and "The run goes on" in said[-1]
        assert checkpoints.steps() == [5] and checkpoints.good_step == 5
        assert not [name for name in bucket.names() if "/10/" in name]
        with bucket.failing(403, "POST"):  # All else.
            checkpoints.save(15, made(15))
            checkpoints.settle()
        assert "checkpoint 15 could not be saved" in said[-1]
        with pytest.raises(SaveFailed, match="Last good checkpoint: 5"):
            checkpoints.wait()
        checkpoints.save(20, made(20))
        checkpoints.wait()
        assert checkpoints.steps() == [5, 20]


def test_a_checkpoint_counts_once_what_belongs_to_it_is_there(bucket, said):
    def refuse():
        raise OSError(5, "the bucket is away")

    failed = "checkpoint 5 could not be saved: .* the bucket is away"
    with pytest.raises(SaveFailed, match=failed), opened(flush=refuse) as checkpoints:
        checkpoints.save(5, made(5))
        checkpoints.settle()
        assert "The run goes on" in said[-1] and checkpoints.steps() == []


def test_what_a_kill_leaves_is_no_checkpoint(bucket):
    with opened() as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, made(step))
        checkpoints.wait()
        assert checkpoints.steps() == [10, 15]  # The oldest was deleted.
    assert not [name for name in bucket.names() if "/5/" in name]
    buckets.Folder(f"gs://{BUCKET}/run/checkpoints/15").delete([manifest.NAME])
    with opened() as checkpoints:
        assert not [name for name in bucket.names() if "/15/" in name]
        assert_same(restored(checkpoints), made(10))


def test_a_damaged_checkpoint_is_moved_aside(bucket, said):
    with opened() as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, made(step))
        checkpoints.wait()
        name = max((n for n in bucket.names() if "/10/default/d/" in n), key=len)
        data = bytearray(bucket.read(name))
        data[50] ^= 1
        buckets.Folder(f"gs://{BUCKET}").write(name, bytes(data))
        assert_same(restored(checkpoints), made(5))
        assert "checkpoint 10" in said[-1] and "CRC-32" in said[-1]
        assert checkpoints.steps() == [5]
    assert any(n.startswith("run/unreadable_checkpoints/") for n in bucket.names())


WORKDIR = f"gs://{BUCKET}/run"


def lock_of(**changes) -> str:
    return json.dumps({**files.this_process(), "beat": 0, "owner": "x", **changes})


def test_one_run_at_a_time(bucket, said):
    with workdirs.opened(WORKDIR, locks=True):
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()} on host"):
            workdirs.Mirror(WORKDIR, locks=True)
        with workdirs.opened(WORKDIR, writes=False):  # Readers are welcome.
            time.sleep(0.5)  # Signs of life.
        assert json.loads(bucket.read("run/run.lock"))["beat"] > 1
    assert bucket.names() == []


def test_the_lock_of_a_dead_run_is_taken_over(bucket, said):
    folder = buckets.Folder(WORKDIR)
    # A process of this machine that has ended; its number may have been given to another.
    folder.write("run.lock", lock_of(started=1.0))
    with workdirs.opened(WORKDIR, locks=True):
        assert not said
    folder.write("run.lock", lock_of(host="elsewhere"))
    began = time.monotonic()
    with workdirs.opened(WORKDIR, locks=True):
        assert time.monotonic() - began >= workdirs.PATIENCE
        assert "held by process" in said[0] and "elsewhere" in said[0]
    folder.write("run.lock", "not what we write")
    with workdirs.opened(WORKDIR, locks=True):
        pass


def test_a_run_elsewhere_that_is_alive_keeps_its_lock(bucket, said):
    folder, ended = buckets.Folder(WORKDIR), threading.Event()

    def live():
        while not ended.wait(0.1):
            folder.write("run.lock", lock_of(host="elsewhere"))

    thread = threading.Thread(target=live)
    folder.write("run.lock", lock_of(host="elsewhere"))
    thread.start()
    try:
        with pytest.raises(UserError, match=r"another run \(process \d+ on host elsewhere\)"):
            workdirs.Mirror(WORKDIR, locks=True)
    finally:
        ended.set()
        thread.join()


def test_a_run_that_was_asleep_does_not_write_any_more(bucket, monkeypatch, capfd):
    class Exit(Exception):
        pass

    def leave(code: int):
        raise Exit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(workdirs, "BEAT", 1000.0)
    mirror = workdirs.Mirror(WORKDIR, locks=True)
    buckets.Folder(WORKDIR).write("run.lock", lock_of(host="elsewhere"))
    (mirror.folder / "late.txt").write_text("late")
    with pytest.raises(Exit, match="75"):
        mirror.flush()
    assert "another run has taken over gs://runs/run" in capfd.readouterr().err
    assert "run/late.txt" not in bucket.names()


def test_an_answer_that_was_lost_does_not_lose_the_lock(bucket):
    folder = buckets.Folder(WORKDIR)
    lock = workdirs.Lock(folder)
    lock.acquire()
    folder.write("run.lock", bucket.read("run/run.lock"))  # As by a request that was tried twice.
    lock.beat()
    lock.release()
    assert bucket.names() == []


def test_the_run_goes_on_while_the_bucket_is_away(bucket, said):
    with workdirs.opened(WORKDIR, locks=True) as place:
        with bucket.failing(503):
            (place.folder / "metrics.jsonl").write_text("1\n")
            deadline = time.monotonic() + 20
            while not said and time.monotonic() < deadline:
                time.sleep(0.05)
            assert "can't write to gs://runs/run: 503" in said[0] and "goes on" in said[0]
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert said[1:] == ["gs://runs/run can be written to again"]
        assert bucket.read("run/metrics.jsonl") == b"1\n"
    kept = "newest files are in"
    with pytest.raises(SaveFailed, match=kept) as error, workdirs.opened(WORKDIR) as place:
        (place.folder / "metrics.jsonl").write_text("2\n")
        bucket.fault = lambda method, path: 503
    kept = pathlib.Path(str(error.value).partition("files are in ")[2].partition(";")[0])
    assert (kept / "metrics.jsonl").read_text() == "2\n"


def test_files_change_in_every_way(bucket):
    folder = buckets.Folder(WORKDIR)
    folder.write("old.json", "{}")
    folder.write("checkpoints/1/huge", "not fetched")
    with workdirs.opened(WORKDIR) as place:
        assert {path.name for path in place.folder.iterdir()} == {"old.json"}
        files.append_whole(place.folder / "rows.jsonl", "1\n")
        place.flush()
        files.append_whole(place.folder / "rows.jsonl", "2\n")
        (place.folder / "below").mkdir()
        (place.folder / "below" / "x").write_bytes(b"\0")
        (place.folder / "half.tmp").write_text("half")
        before = len(bucket.requests)
        place.flush()
        assert len(bucket.requests) == before + 2  # What has changed.
    assert bucket.read("run/rows.jsonl") == b"1\n2\n" and bucket.read("run/below/x") == b"\0"
    assert "run/half.tmp" not in bucket.names()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for source in ("gs://b/run", "gs://b/w.safetensors"):
        with pytest.raises(UserError, match=r"pip install gcsfs google-cloud-storage"):
            weights.load(source)
        with pytest.raises(UserError, match=r"pip install gcsfs google-cloud-storage"):
            effnet_jax.train(experiment(), source)


def test_the_commands_take_addresses_where_they_can(bucket):
    for parser, flag in ((train_tool, "workdir"), (eval_tool, "weights"), (eval_tool, "workdir")):
        args = parser.PARSER.parse_args([f"--{flag}=gs://runs/run"])
        assert getattr(args, flag) == "gs://runs/run"
    with pytest.raises(UserError, match="gs://runs/no"):
        train_tool.PARSER.parse_args(["--config=gs://runs/no"])
    config = experiment()
    buckets.Folder("gs://runs/run").write("config.json", json.dumps(config_lib.to_dict(config)))
    for source in ("gs://runs/run", "gs://runs/run/config.json"):
        read = train_tool.PARSER.parse_args([f"--config={source}", "--config.seed=7"]).config
        assert config_lib.changes(config_lib.to_dict(config), config_lib.to_dict(read)) == [
            f"config.seed: {config.seed} -> 7"
        ]


@pytest.mark.parametrize(
    "workdir, fault, message",
    [
        ("gs://nowhere/run", None, "can't use gs://nowhere/run: 404.*Create the bucket"),
        ("gs://runs/run", 403, "can't use gs://runs/run: 403 no permission.*Storage Object User"),
        ("gs://runs", None, "gs://runs is a whole bucket: give a folder"),
    ],
)
def test_a_bucket_that_cannot_be_used(bucket, workdir, fault, message):
    bucket.fault = lambda method, path: fault
    with pytest.raises(UserError, match=message):
        effnet_jax.train(experiment(), workdir)
    bucket.fault = lambda method, path: None
    with pytest.raises(UserError, match=r"s3://b/run is not a local path"):
        effnet_jax.train(experiment(), "s3://b/run")
    with pytest.raises(UserError, match=r"no file or folder gs://runs/no/w.safetensors"):
        weights.load("gs://runs/no/w.safetensors")


def test_rows_and_results_in_a_bucket(bucket):
    path, row = buckets.to_path(f"gs://{BUCKET}/tables/a/rows.csv"), {"name": "one", "top1": 0.5}
    csv_rows.check_append(path, row)
    assert not bucket.names()  # A table without rows is no table.
    csv_rows.append_csv(path, [row])
    csv_rows.append_csv(path, [row | {"name": "two"}])
    csv_rows.check_append(path, row)
    assert [cells["name"] for cells, _ in csv_rows.read(path)[1]] == ["one", "two"]
    with pytest.raises(UserError, match="other columns"):
        csv_rows.check_append(path, ["name", "top5"])
    assert results.find_files([path.parent.parent]) == {path: False}
    assert results.find_files([path]) == {path: True}
    with pytest.raises(UserError, match="no file or folder gs://"):
        results.find_files([path.parent / "none"])

    table = buckets.to_path(f"gs://{BUCKET}/sweep.csv")
    run = {"name": "a", "time": "2026-11-22T10:00:00+00:00", "top1": 0.1}
    for rows in ([run], [run | {"name": "b"}], [run | {"top1": 0.2}]):
        csv_rows.merge_csv(table, rows)
    found = {cells["name"]: cells["top1"] for cells, _ in csv_rows.read(table)[1]}
    assert found == {"a": "0.2", "b": "0.1"}
    with pytest.raises(UserError, match="not a results file"):
        csv_rows.merge_csv(path, [run])


def test_a_row_of_another_program_meanwhile_stays(bucket):
    path, seen = buckets.to_path(f"gs://{BUCKET}/rows.csv"), []

    def change(before: bytes) -> bytes:
        if not seen:
            buckets.write(path, "theirs\n")
        seen.append(before)
        return before + b"ours\n"

    buckets.update(path, change)
    assert seen == [b"", b"theirs\n"] and buckets.read(path) == b"theirs\nours\n"


def test_a_bucket_that_refuses_a_table_is_reported_before_the_work(bucket):
    bucket.fault = lambda method, path: 403 if method == "POST" else None
    with pytest.raises(UserError, match=r"can't write to --csv=gs://.*Storage Object User"):
        csv_rows.check_append(buckets.to_path(f"gs://{BUCKET}/rows.csv"), ["name"])
