"""The supervisor of a run: starts the loop, and starts it again from the last good checkpoint."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import parallel
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.errors import Interrupted, NonFiniteLossError, UserError
from effnet_jax.run import buckets, files, workdirs, writers
from effnet_jax.run.processes import ALONE, Alone
from effnet_jax.run.signals import Signals
from effnet_jax.run.workdirs import Workdir
from effnet_jax.training.clock import Clock
from effnet_jax.training.evaluations import Scores
from effnet_jax.training.hooks import Hook
from effnet_jax.training.loop import compile_step, train
from effnet_jax.training.profiling import Profiler
from effnet_jax.training.setup import Run, prepare
from effnet_jax.training.state import TrainState

AGAIN = "Run the same command again to resume"


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    hooks: Sequence[Hook] = (),
    processes: Alone = ALONE,
    init: Callable[[], Any] | None = None,
) -> tuple[TrainState, Scores]:
    """Trains until `config.epochs`, resuming from the newest checkpoint in the workdir.

    Without a checkpoint it starts from random weights, or those that `init` returns, a
    `weights.Weights`; `effnet_jax.train` makes it from `config.init`.

    After a loss that is not finite, with `config.nonfinite.action="rollback"`, the loop is called
    again from the newest checkpoint, past the data of the steps since. Returns the final state, and
    the last evaluations by name: val/raw/top1, val/ema/count and so on.

    Raises:
      UserError: bad input, before any compute is spent.
      Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved. A signal before the first step is
        not waited for: StoppedEarly or KeyboardInterrupt.
      NonFiniteLossError: the message names the step; the last checkpoint is from before it.
    """
    if not buckets.is_bucket(workdir):
        files.check_local("workdir", workdir)
    if config.init.weights and init is None:
        raise UserError("config.init.weights is set: call effnet_jax.train, which loads them")
    clock, first = Clock(), processes.is_first
    with (
        Signals(early="at the start") as signals,
        workdirs.opened(workdir, writes=first, locks=first) as place,
        _prepared(config, place, processes, clock) as (run, checkpoints),
        contextlib.ExitStack() as cleanup,
    ):
        state = run.newest_state(checkpoints, init)
        signals.early = f"before step {int(state.step) + 1}"
        _open_run(run, int(state.step))
        # The program in use is kept here, so that a roll-back does not compile it again.
        compiled = functools.lru_cache(maxsize=1)(functools.partial(compile_step, run))
        compiled(run.stage(int(state.step) + 1))  # Before its data starts to flow.
        signals.early = ""  # From here on there will be something to save.
        stopped = processes.agreed(signals)
        steps = run.profiled if processes.is_first else range(0)
        program = lambda step: compiled(run.stage(step))  # noqa: E731
        profiler = Profiler(steps, run.workdir, clock, signals, program)
        cleanup.callback(profiler.close)
        hooks, scores = [*hooks, profiler], None
        cleanup.enter_context(run.notify.at_end(run.address))
        while scores is None:
            skipped, rollbacks = int(state.skipped), int(state.rollbacks)
            try:
                state, scores = train(run, state, checkpoints, compiled, stopped, hooks)
            except NonFiniteLossError as bad:
                bad.__traceback__ = None  # It holds a batch, its readers and the bad state.
                state = None  # Before there is another.
                state = _roll_back(run, bad, skipped, rollbacks, checkpoints, init)
            except Interrupted as error:
                _wait(run, checkpoints)
                after = f"{signals.seconds():.1f} s after the signal"
                raise Interrupted(f"stopped by {signals.name} {error}, {after}. {AGAIN}") from None
            except UserError as error:  # An image that can't be read.
                raise UserError(f"{error}. {_last_good(run, checkpoints)}") from None
        _wait(run, checkpoints)
    return state, scores


@contextlib.contextmanager
def _prepared(
    config: ConfigDict, place: Workdir, processes: Alone, clock: Clock
) -> Iterator[tuple[Run, Checkpoints]]:
    """A run whose workdir is held by this process, and its checkpoints."""
    run = prepare(config, place, processes, clock)
    locks = processes.is_first and not buckets.is_bucket(place.address)
    with (
        files.Lock(place.folder / files.RUN_LOCK) if locks else contextlib.nullcontext(),
        Checkpoints(place.address, config.checkpoint, processes, place.flush) as checkpoints,
        contextlib.closing(clock),
    ):
        yield run, checkpoints


def _wait(run: Run, checkpoints: Checkpoints) -> None:
    with run.clock.spent("checkpoint"):
        checkpoints.wait()


def _open_run(run: Run, start: int) -> None:
    """Writes what is known before the first step, and says what will happen."""
    seconds = run.config.processes.start_seconds
    run.processes.check_same("restored", lambda: {"step": start}, seconds)
    if start > run.total:
        raise UserError(
            f"the run in {run.address} is at step {start}, past the {run.total} steps of config."
            f"{'steps' if run.config.epochs is None else f'epochs={run.config.epochs:g}'}; raise "
            "it, or give another --workdir"
        )
    if run.processes.is_first:
        run.write_files(start)
    run.clock.open(run.workdir, start)
    for line in run.describe(start):
        writers.say(line)


def _last_good(run: Run, checkpoints: Checkpoints) -> str:
    checkpoints.settle()
    step = checkpoints.good_step
    return f"Last good checkpoint in {run.address}: {f'step {step}' if step else 'none yet'}"


def _roll_back(
    run: Run,
    bad: NonFiniteLossError,
    skipped: int,
    rollbacks: int,
    checkpoints: Checkpoints,
    init: Callable[[], Any] | None,
) -> TrainState:
    """The state of the newest checkpoint, which skips the data of the steps since.

    `skipped` and `rollbacks` are of the state that went bad: an earlier roll-back may be newer than
    the checkpoint. Raises `bad` again where the config does not allow another roll-back.
    """
    position, allowed = bad.step + skipped, run.config.nonfinite.max_rollbacks
    if run.config.nonfinite.action == "stop" or rollbacks >= allowed:
        after = f" after {rollbacks} roll-backs" if rollbacks else ""
        raise NonFiniteLossError(
            f"{bad}: stopped{after}. A lower learning rate or a longer warm-up often helps. "
            f"{_last_good(run, checkpoints)}",
            bad.step,
        ) from None
    run.clock.write()
    with run.clock.spent("rework"):
        checkpoints.settle()
        state = run.newest_state(checkpoints, init)
        step = int(state.step)
        changed = {"skipped": position - step, "rollbacks": rollbacks + 1}
        arrays = jax.device_put(jax.tree.map(np.int32, changed), parallel.replicated(run.mesh))
        state = state.replace(**arrays)
    writers.say(
        f"{bad}: back to step {step}, resuming with batch {position + 1} of the data "
        f"(roll-back {rollbacks + 1} of at most {allowed})"
    )
    run.notify("loss", f"{bad}: back to step {step}")
    run.clock.step = step
    run.clock.write(event="rollback", reason=str(bad), bad_step=bad.step, **changed)
    return state
