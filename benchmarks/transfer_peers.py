"""Compare fine-tuning of released Lite0 on solar cells with PyTorch's, in accuracy and seconds.

Both start from the same weights and train for the same epochs on the same split. They take turns on
the same cores, with a process for each seed, which is timed from its start to its result. Finished
runs are kept in --workdir, so that the same command continues after an interruption.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

import rich.console
import rich.table

from benchmarks import bars
from effnet_jax import csv_rows
from effnet_jax.run import files, writers
from effnet_jax.run.workers import available_cores

ROOT = pathlib.Path(__file__).parents[1]
FRAMEWORKS = ("ours", "pytorch")
PUBLISHED = 0.868  # Top-1 of this recipe in PyTorch before this benchmark was written.


def command(framework: str, seed: int, args: argparse.Namespace, workdir: pathlib.Path) -> list:
    """The command of a run. The peer prints its result as JSON; ours is in the workdir."""
    if framework == "pytorch":
        flags = [f"--data={args.data}", f"--seed={seed}", f"--epochs={args.epochs}"]
        return [sys.executable, "-m", "benchmarks.peer_lite", *flags]
    flags = {"data.data_dir": args.data, "init.weights": args.weights, "seed": seed}
    flags |= dict.fromkeys(("epochs", "eval_epochs", "checkpoint.save_epochs"), args.epochs)
    settings = [f"--config.{key}={value}" for key, value in flags.items()]
    start = [sys.executable, "-m", "effnet_jax", "train", "--config=configs/elpv.py"]
    return [*start, *settings, f"--workdir={workdir}"]


def run(framework: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once and show the progress of the run; return the row of results."""
    workdir = args.workdir / f"{framework}_seed{seed}"
    shutil.rmtree(workdir, ignore_errors=True)  # An interrupted run starts from the beginning.
    before, start, lines = cpu_seconds(), time.perf_counter(), []
    process = subprocess.Popen(
        command(framework, seed, args, workdir),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    for line in process.stdout:
        lines.append(line)
        if line.startswith(("step", "epoch")):
            writers.say(f"{framework}, seed {seed}: {line.strip()}")
    if process.wait():
        sys.exit(f"{framework}, seed {seed} failed:\n{''.join(lines[-40:])}")
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - before
    if framework == "ours":
        top1 = writers.read_metrics(workdir)[-1]["val/ema/top1"]
        version = ""
    else:
        result = json.loads(lines[-1])
        top1, version = result["top1"], result["version"]
    return {
        "framework": framework,
        "seed": seed,
        "top1": round(top1, 5),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "epochs": args.epochs,
        "cores": len(available_cores()),
        "torch": version,
        **csv_rows.describe_machine(),
    }


def cpu_seconds() -> float:
    """User and system time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table with a row for each framework."""
    table = rich.table.Table("", "top-1 by seed", "mean", "seconds by seed", "mean", "CPU seconds")
    for framework in FRAMEWORKS:
        own = [row for row in rows if row["framework"] == framework]
        cells = []
        for key, form in (("top1", ".2%"), ("seconds", ".0f")):
            values = [row[key] for row in own]
            cells += [", ".join(f"{value:{form}}" for value in values)]
            cells += [f"{statistics.fmean(values):{form}}"]
        table.add_row(
            framework, *cells, f"{statistics.fmean(row['cpu_seconds'] for row in own):.0f}"
        )
    return table


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """The bars that were missed: PyTorch's accuracy, here and before, and its time."""
    means = {
        (framework, key): statistics.fmean(r[key] for r in rows if r["framework"] == framework)
        for framework in FRAMEWORKS
        for key in ("top1", "seconds")
    }
    bar = max(PUBLISHED, means["pytorch", "top1"])
    missed = []
    if means["ours", "top1"] < bar:
        missed.append(f"top-1 of ours, {means['ours', 'top1']:.2%} < {bar:.2%}")
    if means["ours", "seconds"] > means["pytorch", "seconds"]:
        ours, theirs = (means[name, "seconds"] for name in FRAMEWORKS)
        missed.append(f"seconds of ours, {ours:.0f} > {theirs:.0f}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="from make_elpv.py")
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="Lite0's, for ours")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="keeps finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--csv", type=pathlib.Path, help="append each row when it is measured")
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        for framework in FRAMEWORKS:
            done = args.workdir / f"{framework}_seed{seed}.json"
            if done.exists():
                rows.append(files.read_json(done))
                continue
            row = run(framework, seed, args)
            writers.say(f"{framework}, seed {seed}: {row['top1']:.2%} after {row['seconds']:.0f} s")
            if args.csv:
                csv_rows.append_csv(args.csv, [row])
            done.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(done, row)
            rows.append(row)
    rich.console.Console(width=120).print(show(rows))
    return bars.report(failures(rows))


if __name__ == "__main__":
    sys.exit(main())
