"""The training loop, to be read once from top to bottom."""

import contextlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from effnet_jax import config as config_lib
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.errors import Interrupted
from effnet_jax.run import trackers
from effnet_jax.run import writers as writers_lib
from effnet_jax.run.workers import abandonable
from effnet_jax.run.writers import Writers
from effnet_jax.training import progressive
from effnet_jax.training.clock import Meter
from effnet_jax.training.early_stopping import Patience
from effnet_jax.training.evaluations import Scores
from effnet_jax.training.hooks import Hook
from effnet_jax.training.progressive import Stage
from effnet_jax.training.setup import Run
from effnet_jax.training.state import TrainState
from effnet_jax.training.step import lower_train_step


def train(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    compiled: Callable[[Stage], jax.stages.Compiled],
    stopped: Callable[[], bool],
    hooks: Sequence[Hook],
) -> tuple[TrainState, Scores]:
    """The loop: from `state` to the last step, or until `config.early_stopping` ends it.

    Raises Interrupted, while a checkpoint is being saved; and NonFiniteLossError, whose step comes
    after the newest checkpoint.
    """
    config, total, clock = run.config, run.total, run.clock
    start, skipped, rollbacks = (int(x) for x in (state.step, state.skipped, state.rollbacks))
    meter, seed = Meter(config.batch_size, clock), np.uint32(config.seed)
    with (
        contextlib.closing(_open_writers(run, start)) as writers,
        contextlib.closing(run.batches(start, skipped)) as batches,
        clock.spent("step"),
    ):
        patience = Patience(run, start)
        scores = _scores_at_start(run, state, writers, stopped, patience)
        for step in range(start + 1, total + 1):
            if patience.ended:
                writers.text(f"stopped early, after step {step - 1} of {total}: {patience.ended}")
                break
            train_step = compiled(run.stage(step))
            run.processes.at("step", step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                batch = clock.next_of(batches)
                # A CPU that waits for other processes may do so here.
                state, metrics = meter.blocked(train_step, state, batch, seed)
            meter.add(step, metrics)
            for hook in hooks:
                hook(step, state, metrics)
            if step == start + 1 and not rollbacks:
                meter.check()
                writers.text(f"first step done {clock.seconds().total():.1f} s after the start")
            if step % config.log_steps == 0 or step == total:
                row = {"rollbacks": rollbacks, "skipped_steps": skipped, **meter.window()}
                _log(run, step, row, writers, checkpoints)

            # A signal is also heeded here, before the next stage is compiled, which takes minutes.
            due = run.evaluations.due(step)
            if not (due or run.is_saved(step) or stopped()):
                continue
            meter.check()  # A state that is not finite never becomes a checkpoint.
            scores = {}
            with contextlib.suppress(Interrupted):  # Saved without scores.
                scores = _evaluate(run, state, due, writers, stopped, patience)
            run.processes.at("save", step)
            with clock.spent("checkpoint"):
                checkpoints.save(step, state, scores or None)
            clock.write()
            if stopped():
                raise Interrupted(f"after step {step} of {total}; saved in {run.address}")
    return state, scores


def _open_writers(run: Run, start: int) -> Writers:
    """The run's writers, as `config.writers` names them."""
    config, others = run.config, []
    if run.processes.is_first:
        others = trackers.open_trackers(config.writers, run.workdir, config_lib.to_dict(config))
    tensorboard = "tensorboard" in config.writers
    return writers_lib.open_writers(run.workdir, start, run.total, tensorboard, others)


def compile_step(run: Run, stage: Stage) -> jax.stages.Compiled:
    """The program of a stage's steps, once all processes have it."""
    run.processes.at("compile")
    which = f"stage {stage.number} of {len(run.stages)}, " if len(run.stages) > 1 else ""
    which += f"{stage.resolution} px: "
    writers_lib.say(f"{which}compiling the training step")
    before = run.clock.seconds()["compile"]
    with run.clock.spent("compile"):
        examples = len(run.source)
        lowered = lower_train_step(stage.model, run.shapes, stage.config, examples, run.mesh)
        program = abandonable(lowered.compile)
        run.processes.barrier("compiled", run.config.processes.start_seconds)
    seconds = run.clock.seconds()["compile"] - before
    writers_lib.say(f"{which}compiled in {seconds:.1f} s")
    return program


def _scores_at_start(
    run: Run,
    state: TrainState,
    writers: Writers,
    stopped: Callable[[], bool],
    patience: Patience,
) -> Scores:
    """The evaluations due at the step resumed from: a signal may have come before them."""
    start, seconds = int(state.step), run.config.processes.start_seconds
    every = list(run.evaluations.sources)
    if not (due := every if patience.ended else run.evaluations.due(start)):
        return {}
    known = run.processes.as_first(
        "evaluation", lambda: writers_lib.read_scores(run.workdir, start), seconds
    )
    if {key.partition("/")[0] for key in known} >= set(due):
        return known
    try:
        return _evaluate(run, state, due, writers, stopped, patience)
    except Interrupted:
        raise Interrupted(f"in the evaluation after step {start}, which is saved") from None


def _evaluate(
    run: Run,
    state: TrainState,
    due: list[str],
    writers: Writers,
    stopped: Callable[[], bool],
    patience: Patience,
) -> Scores:
    """The evaluations that are due, or all where they end the run."""
    step = int(state.step)
    with run.clock.spent("evaluation"):
        scores = run.evaluations.evaluate(state, due, stopped)
        patience.note(step, scores)
        if patience.ended:
            others = [name for name in run.evaluations.sources if name not in due]
            scores |= run.evaluations.evaluate(state, others, stopped)
        run.evaluations.save_outcomes(run.workdir, step)
        if scores:
            writers.scalars(step, {"epoch": run.epoch(step), **scores})
    return scores


def _log(
    run: Run, step: int, row: dict[str, float], writers: Writers, checkpoints: Checkpoints
) -> None:
    """Completes and writes the row of a window of steps."""
    seconds = run.config.batch_size / row["images_per_second"]
    row = {"epoch": run.epoch(step), "learning_rate": float(run.schedule(step - 1)), **row}
    row["seconds_left"] = progressive.steps_left(run.stages, step) * seconds
    writers.scalars(step, row)
    run.clock.write()
    slow = run.stragglers(row["own_seconds"], row["step_seconds"])
    for alarm in filter(None, (slow, checkpoints.alarm(step, run.save_every))):
        writers.text(alarm)
        run.notify("alarm", alarm)
