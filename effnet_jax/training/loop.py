"""The training loop, to be read once from top to bottom."""

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import checkpoint, hosts, parallel, records
from effnet_jax.analysis.curves import draw_curves
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import pipeline, sources
from effnet_jax.errors import Interrupted, NonFiniteLossError, UserError, check_choice
from effnet_jax.evaluation import Evaluator
from effnet_jax.lock import WorkdirLock
from effnet_jax.ranges import check_ranges
from effnet_jax.training import batch_norm, progressive
from effnet_jax.training import goodput as goodputs
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training.goodput import Goodput
from effnet_jax.training.interruption import Interruption
from effnet_jax.training.meter import Meter
from effnet_jax.training.progressive import Stage
from effnet_jax.training.state import TrainState, abstract_state, fresh_state
from effnet_jax.training.step import lower_train_step, random_key
from effnet_jax.training.warm_start import take_weights
from effnet_jax.training.workdir import check_workdir, write_parameters

Scores = dict[str, float | int]


def resolve(config: ConfigDict, classes: tuple[str, ...]) -> ConfigDict:
    """A copy of the config that also holds elsewhere: absolute data_dir, number of classes."""
    config = config.copy_and_resolve_references()
    if config.data.data_dir is not None:
        config.data.data_dir = os.path.abspath(os.path.expanduser(config.data.data_dir))
    given = config.model.num_classes
    if given is None:
        with config.unlocked():
            config.model.num_classes = len(classes)
    elif given < len(classes):
        raise UserError(
            f"config.model.num_classes={given}, and the data has {len(classes)} classes; "
            "leave it out to take as many as the data has"
        )
    return config


def train_and_evaluate(config: ConfigDict, workdir: str) -> tuple[TrainState, Scores]:
    """Trains until `config.epochs`, going on from the newest checkpoint in the workdir.

    Args:
      config: see configs/default.py.
      workdir: where checkpoints, metrics, config and picture go.

    Returns:
      The final state, and the last evaluation: raw_top1, ema_top1 and so on, and the counts.

    Raises:
      UserError: bad input, before any compute is spent.
      Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
      NonFiniteLossError: the message names the step; the last checkpoint is from before it.
    """
    goodput = Goodput()
    workdir = pathlib.Path(workdir).expanduser()

    # Devices, data.
    check_ranges(config)
    hosts.watch(config.hosts)
    mesh = parallel.data_mesh()
    parallel.check_batch("batch_size", config.batch_size, mesh, config.accumulation_steps)
    parallel.check_batch("eval_batch_size", config.eval_batch_size, mesh)
    checkpoint.check_config(config.checkpoint)
    check_choice("config.nonfinite.action", config.nonfinite.action, ("stop", "rollback"))
    pipeline.check_config(config)
    train_source = sources.open_source(config.data, config.data.train_split)
    eval_source = sources.open_source(config.data, config.data.eval_split)
    sources.check_classes(eval_source.classes, train_source.classes, config.data.eval_split)
    if np.ndim(pipeline.read(train_source, 0)["label"]):
        raise UserError(
            f"config.data.label={config.data.label!r} is a set of labels for each image, which can "
            "be evaluated on and not trained on"
        )
    parallel.check_hosts(len(train_source), "training")
    parallel.check_hosts(len(eval_source), "evaluation")
    config = resolve(config, train_source.classes)

    # Model and state: shapes first.
    model, optimizer, shapes = abstract_state(config, len(train_source))
    shardings = parallel.state_sharding(shapes, mesh, config.optimizer.sharded)
    resolution = model.architecture.resolution
    normalization = batch_norm.describe(config, mesh.size)
    evaluator = Evaluator(model, config, eval_source, resolution, mesh)

    # Durations.
    examples, batch_size = len(train_source), config.batch_size
    to_steps = functools.partial(optimizers.steps, batch_size=batch_size, examples=examples)
    total = to_steps(config.epochs)
    eval_every = max(1, to_steps(config.eval_epochs))
    save_every = max(1, to_steps(config.checkpoint.save_epochs))
    if total < 1:
        raise UserError(
            f"config.epochs={config.epochs} of {examples} images is less than one step of "
            f"batch_size={batch_size}"
        )
    stages = progressive.stages(config, examples)

    for source in (train_source, eval_source):
        if source is eval_source or config.data.on_corrupt == "stop":
            pipeline.check_images(source, config.data.check_images, config.data.threads)
    check_workdir(workdir, config)
    data = {"train": train_source, "eval": eval_source}
    facts = functools.partial(records.start_facts, config, data)
    hosts.check_same("start", facts, config.hosts.start_seconds)
    hosts.check_shared(workdir, config.hosts.start_seconds)

    with (
        Interruption(records.say) as interrupted,
        WorkdirLock(workdir, records.say),
        Checkpoints(workdir, config.checkpoint, say=records.say) as checkpoints,
        contextlib.closing(records.Records(workdir, config, train_source.classes)) as record,
        contextlib.closing(goodput),
    ):
        stopped = hosts.agreed(interrupted)

        def newest_state() -> TrainState:
            """Arrays, from the newest checkpoint or fresh."""
            saved = checkpoints.restore(shapes, shardings)
            if saved is not None:
                return saved
            key = random_key(config.seed, "init", 0)
            fresh = fresh_state(model, optimizer, resolution, key, shardings)
            if config.checkpoint.init_from is None:
                return fresh
            return take_weights(fresh, config.checkpoint, records.say)

        state = newest_state()
        start = int(state.step)
        hosts.check_same("restored", lambda: {"step": start}, config.hosts.start_seconds)
        if start > total:
            raise UserError(
                f"the run in {workdir} is at step {start}, past the {total} steps of config.epochs="
                f"{config.epochs:g}; raise it, or give another --workdir"
            )
        record.open(start)
        goodput.open(workdir, start)
        write_parameters(workdir, config, shapes)

        records.say(
            f"{'going on at' if start else 'starting at'} step {start} of {total}: "
            f"{sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes.params)):,} "
            f"parameters, {resolution} px, {examples:,} images, {mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)"
        )
        records.say(normalization)
        if len(stages) > 1 and hosts.is_first():
            records.console.print(progressive.table(stages, resolution))

        # Steps, compiled once a stage, before its data starts to flow.
        seed = np.uint32(config.seed)

        @functools.lru_cache(maxsize=1)
        def compiled(stage: Stage) -> jax.stages.Compiled:
            """A stage's step, once all hosts have it; kept until another stage's is asked for."""
            hosts.at("compile")
            before = goodput.seconds()["compile"]
            with goodput.spent("compile"):
                lowered = lower_train_step(stage.model, optimizer, shapes, stage.config, mesh)
                program = lowered.compile()
                hosts.barrier("compiled", config.hosts.start_seconds)
            seconds = goodput.seconds()["compile"] - before
            which = f"stage {stage.number} of {len(stages)}, " if len(stages) > 1 else ""
            records.say(f"{which}{stage.resolution} px: compiled in {seconds:.1f} s")
            return program

        compiled(progressive.after(stages, start)[0])

        def stop(where: str) -> NoReturn:
            again = "Run the same command again to go on"
            raise Interrupted(f"stopped by {interrupted.name} {where}. {again}")

        if stopped():
            stop(f"before step {start + 1}; {workdir} is as it was")

        def evaluate(step: int) -> Scores | None:
            """Both weights on the evaluation split; None where a signal came."""
            scores = {}
            with goodput.spent("evaluation"):
                for weights in ("raw", "ema"):
                    result = evaluator(*state.weights(weights), should_stop=stopped)
                    if result is None:
                        return None
                    scores |= {f"{weights}_{key}": value for key, value in result.items()}
                record.write(step, {"epoch": step * batch_size / examples, **scores})
            return scores

        def is_evaluated(step: int) -> bool:
            # At the end, and not just before it: epochs are rarely whole steps.
            return step == total or (step % eval_every == 0 and total - step >= eval_every // 2)

        place = jax.process_index(), jax.process_count()
        schedule = optimizers.learning_rate(config, examples)

        def batches_after(step: int, skipped: int) -> Iterator[dict[str, jax.Array]]:
            """What the steps after this one train on, on the devices; read ahead to a stage's end.

            Batches are counted on through all stages: which images are in one is no stage's matter.
            """
            for stage in progressive.after(stages, step):
                size, first = stage.resolution, max(step, stage.first)
                batches = pipeline.train_batches(train_source, stage.config, size, *place)
                if config.data.synthetic:
                    batch = parallel.put_batch(batches[0], mesh)
                    yield from itertools.repeat(batch, stage.last - first)
                    continue
                span = first + skipped, stage.last + skipped
                for batch in batches.read_ahead(config.data, *span, config.data.processes):
                    yield parallel.put_batch(batch, mesh)

        def train(progress: records.Progress) -> Scores | None:
            """From the state as it is to the last step; the last evaluation."""
            nonlocal state
            first, skipped, rollbacks = map(int, (state.step, state.skipped, state.rollbacks))
            meter, scores = Meter(batch_size, goodput), None
            if first and is_evaluated(first):  # A signal may have come in between.
                known = hosts.as_first(
                    "evaluation", lambda: record.evaluation(first), config.hosts.start_seconds
                )
                scores = known or evaluate(first)
            with contextlib.closing(batches_after(first, skipped)) as on_device:
                for step in range(first + 1, total + 1):
                    stage = progressive.after(stages, step - 1)[0]
                    train_step = compiled(stage)
                    hosts.at("step", step)
                    with goodput.spent("data"):
                        batch = next(on_device)
                    state, metrics = train_step(state, batch, seed)
                    goodput.step = step
                    meter.add(step, metrics)
                    progress.advance(step)
                    if step == start + 1 and not rollbacks:
                        meter.check()
                        elapsed = goodput.seconds().total()
                        records.say(f"first step done {elapsed:.1f} s after the start")

                    if step % config.log_steps == 0 or step == total:
                        row = {"epoch": step * batch_size / examples}
                        row["learning_rate"] = float(schedule(step - 1))
                        row |= meter.window()
                        left = progressive.steps_left(stages, step)
                        row["seconds_left"] = left * batch_size / row["images_per_second"]
                        row |= {"rollbacks": rollbacks, "skipped_steps": skipped}
                        progress.status(step, row)
                        record.write(step, row)
                        goodput.write()
                        if alarm := checkpoints.alarm(step, min(save_every, eval_every)):
                            records.say(alarm)

                    # Also before what comes next is compiled: a signal then can wait for minutes.
                    is_saved = step % save_every == 0 or step == stage.last
                    if not (is_evaluated(step) or is_saved or stopped()):
                        continue
                    meter.check()  # A state that is not finite never becomes a checkpoint.
                    scores = evaluate(step) if is_evaluated(step) else None
                    hosts.at("save", step)
                    with goodput.spent("checkpoint"):
                        checkpoints.save(step, state, scores)
                    goodput.write()
                    if stopped():
                        with goodput.spent("checkpoint"):
                            checkpoints.wait()
                        stop(f"after step {step} of {total}; saved in {workdir}")
            return scores

        def last_good() -> str:
            checkpoints.settle()
            step = checkpoints.good_step
            kept = f"step {step}" if step else "none yet"
            return f"Last good checkpoint in {workdir}: {kept}"

        def roll_back(bad: NonFiniteLossError) -> None:
            """To the newest checkpoint, and past the data of the steps since; raises if it may not.

            Counted from the state that went bad: the checkpoint may be older than a roll-back.
            """
            nonlocal state
            position, rollbacks = bad.step + int(state.skipped), int(state.rollbacks)
            allowed = config.nonfinite.max_rollbacks
            if config.nonfinite.action == "stop" or rollbacks >= allowed:
                after = f" after {rollbacks} roll-backs" if rollbacks else ""
                raise NonFiniteLossError(
                    f"{bad}: stopped{after}. A lower learning rate or a longer warm-up often "
                    f"helps. {last_good()}",
                    bad.step,
                ) from None
            goodput.write()
            with goodput.spent("lost"):
                checkpoints.settle()
                state = None  # Before there is another.
                state = newest_state()
                step = int(state.step)
                changed = {"skipped": position - step, "rollbacks": rollbacks + 1}
                arrays = {key: np.int32(value) for key, value in changed.items()}
                state = state.replace(**jax.device_put(arrays, parallel.replicated(mesh)))
                record.rewind(step)
            records.say(
                f"{bad}: back to step {step}, and on with batch {position + 1} of the data "
                f"(roll-back {rollbacks + 1} of at most {allowed})"
            )
            goodput.step = step
            goodput.write(event="rollback", reason=str(bad), bad_step=bad.step, **changed)

        try:
            with goodput.spent("step"), records.Progress(total, start) as progress:
                while True:
                    try:
                        scores = train(progress)
                        break
                    except NonFiniteLossError as bad:
                        bad.__traceback__ = None  # Which holds a batch and its readers.
                        roll_back(bad)
        except UserError as error:  # An image that can't be read.
            raise UserError(f"{error}. {last_good()}") from None

        with goodput.spent("checkpoint"):
            checkpoints.wait()
        if scores is None:  # Of a run that had been finished before.
            raise Interrupted(f"stopped by {interrupted.name}; the run in {workdir} is finished")

    if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # A full disk, after all that counts is saved.
            draw_curves(records.read_metrics(workdir), workdir / "curves.png")
        minutes = goodput.seconds().total() / 60
        title = f"step {int(state.step)}, {minutes:.1f} min in this run"
        records.console.print(records.result_table(scores, title))
        records.console.print(goodputs.table(workdir))
        records.say(f"curves: {workdir / 'curves.png'}   all else: {workdir}")
    return state, scores
