"""Measures images per second of training and inference, next to other implementations.

Examples:
  python -m benchmarks model --csv=results/throughput.csv
  python -m benchmarks model --models lite0 --modes infer --peers_python=.venv-benchmarks/bin/python

Contenders are ours with each set of --operations and, with --peers_python, timm's network in
PyTorch, channels last, eager and compiled. Each contender is a separate process with the same
settings of the allocator. They take turns in blocks of batches, of which the first are not counted
because an idle process loses memory pages. Ratios are taken within a turn.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

import rich.table

from benchmarks.throughput_ours import SETS
from effnet_jax import csv_rows, flags
from effnet_jax.run import writers

ROOT = pathlib.Path(__file__).parents[1]
UNCOUNTED = 2  # Batches at the start of each block.
SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

PARSER = flags.Parser(__doc__)
add, modes = PARSER.group("measurement"), ("train", "infer")
add("--models", nargs="+", default=["b0"])
add("--modes", nargs="+", default=list(modes), choices=modes, help="training, inference or both")
operations = "sets of operations: those made for this machine, or plain ones"
add("--operations", nargs="+", default=["auto", "plain"], choices=SETS, help=operations)
peers = "interpreter that has torch and timm, to measure timm too"
add("--peers_python", metavar="FILE", help=peers)
add("--batch", type=flags.count, default=16)
add("--resolution", type=flags.count, help=" (default: the model's own)")
add("--dtype", default="float32", choices=("float32", "bfloat16"))
add("--turns", type=flags.count, default=7)
block = f"batches in a turn, of which the first {UNCOUNTED} are not counted"
add("--block", type=flags.count, default=5, metavar="N", help=block)


class Contender(NamedTuple):
    """A program to time: ours with a set of operations, or timm's eager or compiled."""

    library: str
    form: str

    def __str__(self) -> str:
        return f"{self.library} {self.form}"


class Worker:
    """The process of a contender, which runs `throughput_ours` or `throughput_timm`."""

    def __init__(self, contender: Contender, model: str, mode: str, args: argparse.Namespace):
        ours = contender.library == "ours"
        python = sys.executable if ours else args.peers_python
        module = "benchmarks.throughput_ours" if ours else "benchmarks.throughput_timm"
        command = [python, "-m", module, model, mode, contender.form, str(args.batch), args.dtype]
        command += [str(args.resolution)] if args.resolution else []
        environment = os.environ | SETTINGS
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def receive(self) -> Any:
        """The content of the next line of JSON that the process prints."""
        while line := self._process.stdout.readline():
            if line.startswith(("{", "[")):
                return json.loads(line)
        sys.exit(f"{self._process.args} ended with code {self._process.wait()}")

    def run(self, count: int) -> list[float]:
        """Run `count` batches; return the seconds of each."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self.receive()

    def close(self) -> dict[str, Any]:
        """End the process; return its report of peak memory."""
        self._process.stdin.close()
        end = self.receive()
        self._process.wait()
        return end


def start(model: str, mode: str, args: argparse.Namespace) -> dict[Contender, Worker]:
    """Start the processes of all contenders, which compile at the same time."""
    contenders = [Contender("ours", each) for each in args.operations]
    if args.peers_python:
        contenders += [Contender("timm", "eager"), Contender("timm", "compiled")]
    return {each: Worker(each, model, mode, args) for each in contenders}


def compare(
    model: str, mode: str, workers: dict[Contender, Worker], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each contender."""
    about, seconds = {}, {each: [] for each in workers}
    for contender, worker in workers.items():
        about[contender] = worker.receive()
        started = about[contender]["start_seconds"]
        writers.say(f"{model} {mode}, {contender}: ready after {started:.0f} s")
    if len(sizes := {each["resolution"] for each in about.values()}) > 1:
        sys.exit(f"{model}: the contenders take images of {sizes} px; choose --resolution")
    for turn in range(args.turns):
        for contender, worker in workers.items():
            block = worker.run(args.block)[UNCOUNTED:]
            seconds[contender].append(statistics.median(block))
        rates = [f"{each} {args.batch / times[-1]:.1f}" for each, times in seconds.items()]
        writers.say(f"{model} {mode}, turn {turn + 1}/{args.turns}, images/s: {', '.join(rates)}")
    for contender, worker in workers.items():
        about[contender] |= worker.close()
    return [make_row(model, mode, each, seconds, about[each], args) for each in workers]


def make_row(
    model: str,
    mode: str,
    contender: Contender,
    seconds: dict[Contender, list[float]],
    about: dict[str, Any],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The row of a contender; ratios are the speed of the first contender over this one's."""
    first = next(iter(seconds.values()))
    ratios = [other / own for own, other in zip(first, seconds[contender], strict=True)]
    return {
        "model": model,
        "mode": mode,
        "library": contender.library,
        "form": contender.form,
        "version": about["version"],
        "resolution": about["resolution"],
        "batch": args.batch,
        "dtype": args.dtype,
        "images_per_second": round(args.batch / statistics.median(seconds[contender]), 2),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "peak_mib": about["peak_mib"],
        "start_seconds": about["start_seconds"],
        "turns": args.turns,
        "block": args.block,
        **csv_rows.describe_machine(),
        "device": about["device"],
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each model, mode and contender."""
    if args.block <= UNCOUNTED:
        PARSER.error(f"--block={args.block} should be more than the {UNCOUNTED} uncounted batches")
    pairs = itertools.product(args.models, args.modes)
    return [row for pair in pairs for row in compare(*pair, start(*pair, args), args)]


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    first = rows[0]
    name = f"{first['library']} {first['form']}"
    columns = ("model", "mode", "contender", "images/s", f"{name} / this (min to max)", "peak MiB")
    title = f"batch {first['batch']}, {first['dtype']}, {first['device']}"
    table = rich.table.Table(*columns, title=title)
    for row in rows:
        spread = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        cells = (row["model"], row["mode"], f"{row['library']} {row['form']}")
        rate = f"{row['images_per_second']:.1f}"
        table.add_row(*cells, rate, spread, f"{row['peak_mib']:.0f}")
    return table
