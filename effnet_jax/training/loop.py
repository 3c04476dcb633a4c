"""The training loop, to be read once from top to bottom."""

import contextlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from effnet_jax.checkpoint import Checkpoints
from effnet_jax.errors import Interrupted
from effnet_jax.run import writers as writers_lib
from effnet_jax.run.writers import Writers
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training import progressive
from effnet_jax.training.clock import Clock, Meter
from effnet_jax.training.setup import Scores, Setup
from effnet_jax.training.state import TrainState
from effnet_jax.training.step import lower_train_step

# Sees (step, state, metrics) after each step. The arrays are on the devices, and the next step
# reuses the state's: a hook copies what it keeps.
Hook = Callable[[int, TrainState, dict[str, jax.Array]], None]


def train(
    run: Setup,
    state: TrainState,
    checkpoints: Checkpoints,
    programs: "Programs",
    clock: Clock,
    stopped: Callable[[], bool],
    hooks: Sequence[Hook],
) -> tuple[TrainState, Scores]:
    """The loop: from `state` to the last step.

    Raises:
      Interrupted: says where; a checkpoint was saved.
      NonFiniteLossError: the newest checkpoint is from before the step that it names.
    """
    config, processes, total = run.config, run.processes, run.total
    start, skipped, rollbacks = (int(x) for x in (state.step, state.skipped, state.rollbacks))
    meter, seed = Meter(config.batch_size, clock), np.uint32(config.seed)
    with (
        contextlib.closing(writers_lib.open_writers(run.workdir, start, total)) as writers,
        contextlib.closing(run.batches(start, skipped)) as batches,
        clock.spent("step"),
    ):
        scores = _scores_at_start(run, state, writers, clock, stopped)
        for step in range(start + 1, total + 1):
            train_step = programs.at(step)
            processes.at("step", step)
            with clock.spent("data"):
                batch = next(batches)
            state, metrics = train_step(state, batch, seed)
            meter.add(step, metrics)
            for hook in hooks:
                hook(step, state, metrics)
            if step == start + 1 and not rollbacks:
                meter.check()
                writers.text(f"first step done {clock.seconds().total():.1f} s after the start")
            if step % config.log_steps == 0 or step == total:
                row = {"rollbacks": rollbacks, "skipped_steps": skipped, **meter.window()}
                _log(run, step, row, writers, clock)
                if alarm := checkpoints.alarm(step, run.save_every):
                    writers.text(alarm)

            # Also asked before what comes next is compiled: a signal then can wait for minutes.
            due = run.due(step)
            if not (due or run.is_saved(step) or stopped()):
                continue
            meter.check()  # A state that is not finite never becomes a checkpoint.
            scores = {}
            with contextlib.suppress(Interrupted):  # Saved below, without scores.
                scores = _evaluate(run, step, state, due, writers, clock, stopped)
            processes.at("save", step)
            with clock.spent("checkpoint"):
                checkpoints.save(step, state, scores)
            clock.write()
            if stopped():
                with clock.spent("checkpoint"):
                    checkpoints.wait()
                raise Interrupted(f"after step {step} of {total}; saved in {run.workdir}")
    return state, scores


class Programs:
    """The compiled step of the stage that a run is in, kept until another stage's is asked for."""

    def __init__(self, run: Setup, clock: Clock):
        self._run, self._clock = run, clock
        self._stage, self._program = None, None

    def at(self, step: int) -> jax.stages.Compiled:
        """The program for a step, once all processes have it."""
        run, stage = self._run, self._run.stage(step)
        if stage is self._stage:
            return self._program
        run.processes.at("compile")
        before = self._clock.seconds()["compile"]
        with self._clock.spent("compile"):
            lowered = lower_train_step(
                stage.model, run.optimizer, run.shapes, stage.config, run.mesh
            )
            self._stage, self._program = stage, lowered.compile()
            run.processes.barrier("compiled", run.config.processes.start_seconds)
        seconds = self._clock.seconds()["compile"] - before
        which = f"stage {stage.number} of {len(run.stages)}, " if len(run.stages) > 1 else ""
        writers_lib.say(f"{which}{stage.resolution} px: compiled in {seconds:.1f} s")
        return self._program


def _scores_at_start(
    run: Setup, state: TrainState, writers: Writers, clock: Clock, stopped: Callable[[], bool]
) -> Scores:
    """The evaluations due at the step resumed from: a signal may have come before them."""
    start, seconds = int(state.step), run.config.processes.start_seconds
    due = run.due(start)
    if not due:
        return {}
    known = run.processes.as_first(
        "evaluation", lambda: writers_lib.read_scores(run.workdir, start), seconds
    )
    if {key.partition("/")[0] for key in known} >= set(due):
        return known
    try:
        return _evaluate(run, start, state, due, writers, clock, stopped)
    except Interrupted:
        raise Interrupted(f"in the evaluation after step {start}, which is saved") from None


def _evaluate(
    run: Setup,
    step: int,
    state: TrainState,
    due: list[str],
    writers: Writers,
    clock: Clock,
    stopped: Callable[[], bool],
) -> Scores:
    with clock.spent("evaluation"):
        scores = run.evaluate(state, due, stopped)
        if scores:
            writers.scalars(step, {"epoch": run.epoch(step), **scores})
    return scores


def _log(run: Setup, step: int, row: dict[str, float], writers: Writers, clock: Clock) -> None:
    """Completes and writes the row of a window of steps."""
    schedule = optimizers.learning_rate(run.config, len(run.source))
    seconds = run.config.batch_size / row["images_per_second"]
    row = {"epoch": run.epoch(step), "learning_rate": float(schedule(step - 1)), **row}
    row["seconds_left"] = progressive.steps_left(run.stages, step) * seconds
    writers.scalars(step, row)
    clock.write()
