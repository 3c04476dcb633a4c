"""What the training loop costs beside the compiled step: `benchmark loop`.

A run as any other, on one made-up batch, whose every step is waited for: what is left of the time
is the loop's, and nothing of it hides behind the device. A real run does most of that while the
device computes. It is stopped by SIGTERM, as by a scheduler, which also saves. Then the same
program is called again and again with nothing around it. The devices of several processes are
measured with the three flags of train.py; the first has the row.
"""

import argparse
import contextlib
import itertools
import pathlib
import signal
import statistics
import tempfile
import time
from typing import Any
from unittest import mock

import jax
import rich.table

from configs import digits
from effnet_jax import models
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.run import environment, files
from effnet_jax.run import processes as hosts
from effnet_jax.training import clock as goodput
from effnet_jax.training.supervisor import train_and_evaluate

WARM_UP = 2  # Steps that are not counted: until then, on CPU, memory is still being faulted in.
SAVE_EVERY = 100  # Steps, of the share of a step that is reported.
COMPILED = "/jax/core/compile/backend_compile_duration"


class Watched:
    """A run's calls of its compiled step: when each began and ended, one after another."""

    def __init__(self, steps: int):
        self.steps, self.calls = steps, []
        self._call = jax.stages.Compiled.__call__
        self._last = None

    def __enter__(self) -> "Watched":
        # So that what is measured is the loop that trains, and not a copy of it.
        watched = self

        def call(program: jax.stages.Compiled, *arguments: Any) -> Any:
            return watched.run(program, *arguments)

        self._patch = mock.patch.object(jax.stages.Compiled, "__call__", call)
        self._patch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(*error)

    def run(self, program: jax.stages.Compiled, state: Any, batch: Any, seed: Any) -> Any:
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(self._call(program, state, batch, seed))
        self.calls.append((began, time.perf_counter()))
        if len(self.calls) == self.steps:
            self._last = (program, jax.tree.map(jax.numpy.copy, state), batch, seed)
            signal.raise_signal(signal.SIGTERM)
        return state, metrics

    def bare(self) -> list[float]:
        """Seconds of as many calls with nothing around them."""
        program, state, batch, seed = self._last
        seconds = []
        for _ in range(self.steps):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(self._call(program, state, batch, seed))
            seconds.append(time.perf_counter() - began)
        return seconds[WARM_UP:]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row."""
    if args.repeats <= WARM_UP + 1:
        raise UserError(f"--repeats must be more than {WARM_UP + 1}; got {args.repeats}")
    config = digits.get_config(args.model)
    config.model.base_resolution, config.model.stem_stride = 224, 2
    config.batch_size = config.eval_batch_size = args.batch
    config.model.dtype = args.dtype
    config.model.num_classes = 1000
    if args.resolution:
        config.model.resolution = args.resolution
    config.data.synthetic = True
    config.log_steps = 1  # The worst case: a line, and reading the metrics, at every step.
    config.epochs = config.eval_epochs = config.checkpoint.save_epochs = 1000.0
    hosts.join(args.coordinator_address, args.num_processes, args.process_id)
    programs = []

    def listen(event: str, seconds: float, **facts: str) -> None:
        if event == COMPILED:
            programs.append(facts["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with tempfile.TemporaryDirectory() as mine, Watched(args.repeats) as watched:
            workdir = hosts.as_first("workdir", lambda: mine, config.processes.start_seconds)
            with contextlib.suppress(Interrupted):
                train_and_evaluate(config, workdir)
            rows = files.read_rows(pathlib.Path(workdir) / goodput.FILE)
            seconds = watched.bare()
            hosts.barrier("measured", config.processes.start_seconds)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

    calls = watched.calls[WARM_UP:]
    steps = [end - began for began, end in calls]
    between = [following[0] - each[1] for each, following in itertools.pairwise(calls)]
    step, loop = statistics.median(steps), statistics.median(between)
    # The first: a later row has the wait for it at the end.
    saving = next(filter(None, (row["seconds"].get("checkpoint") for row in rows)))
    return [
        {
            "model": args.model,
            "resolution": models.coefficients(config.model).resolution,
            "batch": args.batch,
            "dtype": args.dtype,
            "step_ms": round(step * 1e3, 3),
            "bare_step_ms": round(statistics.median(seconds) * 1e3, 3),
            "loop_ms": round(loop * 1e3, 3),
            "loop_ms_max": round(max(between) * 1e3, 3),
            "loop_share": round(loop / step, 5),
            "save_blocks_ms": round(saving * 1e3, 1),
            "save_share": round(saving / (SAVE_EVERY * step), 5),
            "step_compilations": sum("train_step" in name for name in programs),
            "repeats": args.repeats,
            "processes": jax.process_count(),
            **environment.describe_machine(),
        }
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="b0", help="as for the summary")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--resolution", type=int, help="by default the model's own")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=10, help="steps")
    parser.add_argument("--coordinator_address", help="many processes: HOST:PORT of process 0")
    parser.add_argument("--num_processes", type=int, help="how many there are")
    parser.add_argument("--process_id", type=int, help="which of them this is, from 0")


def show(rows: list[dict[str, Any]]) -> rich.table.Table:
    """The row for a person."""
    (row,) = rows
    title = f"{row['model']}, {row['resolution']} px, batch {row['batch']}, {row['dtype']}"
    table = rich.table.Table("", "ms", "of a step", title=title)
    table.add_row("the step, in the loop", f"{row['step_ms']:.1f}", "")
    table.add_row("the step, alone", f"{row['bare_step_ms']:.1f}", "")
    loop, most = row["loop_ms"], row["loop_ms_max"]
    table.add_row("all else (most)", f"{loop:.2f} ({most:.2f})", f"{row['loop_share']:.2%}")
    share = f"{row['save_share']:.2%} at one in {SAVE_EVERY}"
    table.add_row("a save, until steps go on", f"{row['save_blocks_ms']:.1f}", share)
    table.add_row("compilations of the step", str(row["step_compilations"]), "")
    return table
