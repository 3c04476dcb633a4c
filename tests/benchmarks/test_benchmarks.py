"""The benchmark command and what its rows hold; the times themselves are not tested."""

import csv
import json
import os

import pytest
from conftest import ROOT

from benchmarks import __main__ as benchmark
from benchmarks import latency, loading, transfer_peers, waits
from effnet_jax.errors import UserError
from effnet_jax.report import results
from effnet_jax.run.processes import ALONE

TINY = "resnet20,w=0.5,d=0.3,r=8"


def report(what: str, *arguments: str) -> None:
    args = benchmark.BENCHMARKS[what].PARSER.parse_args(list(arguments))
    args.processes = ALONE
    benchmark.report(what, args)


def header(name: str) -> list[str]:
    with open(ROOT / "results" / name, newline="") as file:
        return next(csv.reader(file))


def test_latency_is_measured_on_one_core_into_rows_that_the_report_reads(
    tmp_path, monkeypatch, capsys
):
    pinned = []
    if hasattr(os, "sched_setaffinity"):  # The other tests keep their cores.
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append(len(cores)))
    monkeypatch.setattr(latency, "WARM_UP", 1)
    path = tmp_path / "rows.csv"
    report("latency", "--models", TINY, "--repeats=2", f"--csv={path}")
    assert TINY in capsys.readouterr().out
    assert pinned in ([], [1])
    with open(path, newline="") as file:
        (row,) = csv.DictReader(file)
    low, mean, high = (float(row[f"latency_ms{key}"]) for key in ("_min", "", "_max"))
    assert 0 < low <= mean <= high
    assert (row["model"], row["resolution"], row["batch"]) == (TINY, "8", "1")
    assert len(results.read([path]).latency) == 1


def test_the_loop_is_measured_against_its_step(capsys):
    report("loop", f"--model={TINY}", "--batch=8", "--repeats=4", "--json")
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == header("benchmark_loop.csv")
    assert (row["model"], row["resolution"], row["repeats"]) == (TINY, 8, 4)
    assert row["step_compilations"] == 1
    assert min(row["step_ms"], row["bare_step_ms"], row["save_blocks_ms"]) > 0
    with pytest.raises(UserError, match="more than 3; got 3"):
        report("loop", "--repeats=3")


def test_names_are_checked_before_anything_runs():
    assert latency.names_of(["b1,resnet152", TINY]) == ["b1", "resnet152", TINY]
    for argument, message in (("--models=b1,b9", "did you mean b8"), ("--repeats=0", "1 or more")):
        with pytest.raises(UserError, match=message):
            report("latency", argument)


def test_data_is_measured_into_a_row_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "WARM_UP", 64)
    config = ["--config=configs/digits.py", "--config.augment.policy=autoaugment"]
    arguments = [
        *config,
        "--num_images=128",
        "--repeats=2",
        f"--picture={tmp_path}/data.png",
        "--json",
    ]
    monkeypatch.chdir(ROOT)
    report("data", *arguments)
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == header("benchmark_data.csv")
    assert (row["data"], row["policy"], row["images"]) == ("digits/train", "autoaugment", 128)
    assert all(row[f"{part}_us"] > 0 for part in ("read", "decode", "augment"))
    assert 0 < row["images_per_cpu_second_min"] <= row["images_per_cpu_second_max"]
    assert row["resident_mib_last"] > 0
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")


def test_data_needs_a_config_that_makes_sense(monkeypatch):
    monkeypatch.chdir(ROOT)
    digits = "--config=configs/digits.py"
    for arguments, message in (
        (["--config=nowhere.py"], "nowhere.py"),
        ([digits, "--config.data.thread=1"], "unknown config key"),
        ([digits, "--config.augment.policy=autoagment"], "autoaugment"),
        ([digits, "surplus"], "surplus"),
    ):
        with pytest.raises(UserError, match=message):
            report("data", *arguments)
    assert loading.PARSER.parse_args([]).config.data.name.startswith("imagenet2012")


def test_maps_are_measured_against_predicting(capsys):
    report("maps", f"--model={TINY}", "--batch=2", "--repeats=1", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["predict", "cam", "gradcam", "gradcam", "layercam"]
    assert rows[0]["ratio"] == 1 and list(rows[0]) == header("benchmark_maps.csv")


def test_a_frozen_network_takes_less_memory(capsys):
    report("freezing", f"--model={TINY}", "--batch=8", "--turns=1", "--json")
    everything, classifier = json.loads(capsys.readouterr().out)
    assert list(classifier) == header("freezing.csv")
    assert (everything["trained"], classifier["trained"]) == ("all", "classifier")
    assert classifier["temporary_mib"] < everything["temporary_mib"] / 2


def test_fine_tuning_beside_pytorch_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys):
    """And misses its bars where ours is slower, or below the peer or the published accuracy."""
    left = []

    def run(framework, seed, args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        better = framework == "ours"
        found = {"top1": 0.88 + 0.01 * better, "seconds": 200 - 10 * better, "cpu_seconds": 300}
        return {"framework": framework, "seed": seed, **found}

    monkeypatch.setattr(transfer_peers, "run", run)
    rows = tmp_path / "rows.csv"
    flags = [f"--{name}={tmp_path / name}" for name in ("data", "weights", "workdir")]
    monkeypatch.setattr("sys.argv", ["transfer_peers", *flags, "--seeds=2", f"--csv={rows}"])
    left += [None]
    with pytest.raises(KeyboardInterrupt):
        transfer_peers.main()
    left += [None] * 3
    assert transfer_peers.main() == 0 and not left
    with open(rows, newline="") as file:
        found = list(csv.DictReader(file))
    runs = [(row["framework"], row["seed"]) for row in found]
    assert runs == [("ours", "0"), ("pytorch", "0"), ("ours", "1"), ("pytorch", "1")]
    assert "89.00%, 89.00%" in capsys.readouterr().out
    measured = [
        {**row, "top1": float(row["top1"]), "seconds": float(row["seconds"])} for row in found
    ]
    worse = [{**row, "top1": 0.86} for row in measured]
    assert transfer_peers.failures(worse) == ["top-1 of ours, 86.00% < 86.80%"]
    slower = [{**row, "seconds": 2 * (row["framework"] == "ours")} for row in measured]
    assert transfer_peers.failures(slower) == ["seconds of ours, 2 > 0"]


def test_waits_compare_whole_commands_with_another_checkout(monkeypatch, capsys, tmp_path):
    ran = []

    def seconds(root, arguments, cache):
        assert all(os.path.exists(word.partition("=")[2]) for word in arguments if "=/" in word)
        ran.append((root, arguments[0], cache))
        return 1.0 if root == waits.ROOT else 2.0

    monkeypatch.setattr(waits, "seconds", seconds)
    report("waits", f"--model={TINY}", f"--against={tmp_path}", "--turns=2", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["cache"] for row in rows] == ["cold", "warm"] * 4
    assert {row["ratio_median"] for row in rows} == {0.5}
    assert ran[0][2] == ran[1][2] != ran[2][2], "a warm run finds the cache of its cold run"
    assert len(ran) == 4 * 2 * 2 * 2
