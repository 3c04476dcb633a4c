"""Measures what the training loop adds to the compiled step, and the time of a save.

Examples:
  python -m benchmarks loop --csv=results/benchmark_loop.csv
  python -m benchmarks loop --model=lite0 --batch=8 --repeats=20

A run on one synthetic batch is compared with the shortest loop around the same program. A hook
waits for each step of both, so that the device hides no work of the loop; in a real run, most of
this work is done while the device computes. The measure is CPU time from the end of a step to the
next call of the hook. Wall-clock time would include the next step if the CPU is the device. The run
saves once, at its end. For several processes, use the three flags of train.py; the first process
reports.
"""

import argparse
import contextlib
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import rich.table
from ml_collections import ConfigDict

from configs import digits
from effnet_jax import csv_rows, flags, models
from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.run import files
from effnet_jax.run.workdirs import Workdir
from effnet_jax.training import clock
from effnet_jax.training.loop import compile_step
from effnet_jax.training.setup import Run, prepare
from effnet_jax.training.state import TrainState
from effnet_jax.training.supervisor import train_and_evaluate

WARM_UP = 2  # Steps that are not counted, since memory is still being faulted in on a CPU.
SAVE_EVERY = 100  # Steps between saves for which the share of a save is reported.
COMPILED = "/jax/core/compile/backend_compile_duration"
PARSER = flags.Parser(__doc__, joins=True)
add = PARSER.group("measurement")
add("--model", default="b0")
add("--batch", type=flags.count, default=16)
add("--resolution", type=flags.count, help=" (default: the model's own)")
add("--dtype", default="float32")
add("--repeats", type=flags.count, default=10, help=" of the step")


class WaitForStep:
    """A hook that waits for each step.

    Attributes:
      done: times at which the steps ended, in seconds.
      between: CPU seconds of this thread from the end of the previous step to the hook's call.
    """

    def __init__(self):
        self.done: list[float] = []
        self.between: list[float] = []
        self._used = 0.0

    def __call__(self, step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        self.between.append(time.thread_time() - self._used)
        jax.block_until_ready((state, metrics))
        self.done.append(time.perf_counter())
        self._used = time.thread_time()

    def period(self) -> float:
        """The median seconds from the end of a step to the end of the next."""
        pairs = itertools.pairwise(self.done[WARM_UP - 1 :])
        return statistics.median(after - before for before, after in pairs)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """A context whose value lists the names of the functions that JAX compiles inside it."""
    names = []

    def listen(event: str, seconds: float, **facts: str) -> None:
        if event == COMPILED:
            names.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run_config(args: argparse.Namespace) -> ConfigDict:
    """The config of a run of `args.repeats` steps without an evaluation."""
    config = digits.get_config(args.model)
    config.model.base_resolution, config.model.stem_stride = 224, 2
    config.batch_size = config.eval_batch_size = args.batch
    config.model.dtype = args.dtype
    config.model.num_classes = 1000
    if args.resolution:
        config.model.resolution = args.resolution
    config.data.synthetic = True
    config.log_steps = 1  # The worst case: each step reads the metrics and logs a line.
    config.evaluations = {}
    examples = len(sources.open_source(config.data, config.data.train_split))
    config.epochs = (args.repeats + 0.5) * args.batch / examples  # Steps are rounded down.
    config.checkpoint.save_epochs = 2 * config.epochs  # Once, at the end.
    return config


def shortest_loop(run: Run, state: TrainState, hook: WaitForStep) -> None:
    """Take all steps of a run with the run's program, and call the hook after each step."""
    program, seed = compile_step(run, run.stages[0]), np.uint32(run.config.seed)
    with contextlib.closing(run.batches(0, 0)) as batches:
        batch = next(batches)
    for step in range(run.total):
        state, metrics = program(state, batch, seed)
        hook(step, state, metrics)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row on the first process; none on the others."""
    if args.repeats <= WARM_UP + 1:
        raise UserError(f"--repeats must be more than {WARM_UP + 1}; got {args.repeats}")
    config, run, bare = run_config(args), WaitForStep(), WaitForStep()
    with tempfile.TemporaryDirectory() as folder:
        seconds = config.processes.start_seconds
        workdir = pathlib.Path(args.processes.as_first("workdir", lambda: folder, seconds))
        with compiled_programs() as programs:
            state, _ = train_and_evaluate(config, workdir, [run], args.processes)
        rows = files.read_rows(workdir / clock.FILE)
        shortest_loop(prepare(config, Workdir(workdir), args.processes, clock.Clock()), state, bare)
    if not args.processes.is_first:
        return []

    shortest = statistics.median(bare.between[WARM_UP:])
    added = [seconds - shortest for seconds in run.between[WARM_UP:]]
    loop = statistics.median(added)
    step = run.period() - loop
    # The first row is the save; a later one is the wait for it at the end.
    saving = next(filter(None, (row["seconds"].get("checkpoint") for row in rows)))
    return [
        {
            "model": args.model,
            "resolution": models.coefficients(config.model).resolution,
            "batch": args.batch,
            "dtype": args.dtype,
            "step_ms": round(step * 1e3, 3),
            "bare_step_ms": round(bare.period() * 1e3, 3),
            "loop_ms": round(loop * 1e3, 3),
            "loop_ms_max": round(max(added) * 1e3, 3),
            "loop_share": round(loop / step, 5),
            "save_blocks_ms": round(saving * 1e3, 1),
            "save_share": round(saving / (SAVE_EVERY * step), 5),
            "step_compilations": sum("train_step" in name for name in programs),
            "repeats": args.repeats,
            "processes": args.processes.count,
            **csv_rows.describe_machine(),
        }
    ]


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the row."""
    (row,) = rows
    title = f"{row['model']}, {row['resolution']} px, batch {row['batch']}, {row['dtype']}"
    table = rich.table.Table("", "ms", "share of a step", title=title)
    table.add_row("the step, in the loop", f"{row['step_ms']:.1f}", "")
    table.add_row("the step, alone", f"{row['bare_step_ms']:.1f}", "")
    loop, most = row["loop_ms"], row["loop_ms_max"]
    table.add_row("the loop (maximum)", f"{loop:.2f} ({most:.2f})", f"{row['loop_share']:.2%}")
    share = f"{row['save_share']:.2%} with a save every {SAVE_EVERY} steps"
    table.add_row("a save, until the next step starts", f"{row['save_blocks_ms']:.1f}", share)
    table.add_row("compilations of the step", str(row["step_compilations"]), "")
    return table
