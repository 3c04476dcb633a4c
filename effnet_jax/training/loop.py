"""The training loop, to be read once from top to bottom."""

import contextlib
import functools
import itertools
import operator
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import checkpoint, parallel, records
from effnet_jax.analysis.curves import draw_curves
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import pipeline, sources
from effnet_jax.errors import Interrupted, NonFiniteLossError, UserError
from effnet_jax.evaluation import Evaluator
from effnet_jax.ranges import check_ranges
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training.interruption import Interruption
from effnet_jax.training.meter import Meter
from effnet_jax.training.state import TrainState, abstract_state, fresh_state
from effnet_jax.training.step import make_train_step, random_key
from effnet_jax.trees import shapes_by_name

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


# A run's place in its data follows from these and the step; a run that goes on has to keep them.
KEPT = ("seed", "batch_size", "data.source", "data.name", "data.train_split")


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes the workdir; raises UserError where this run may not, or can't, write to it."""
    resume = config.checkpoint.resume
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file")
    if resume == "never" and workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(
            f"--workdir={workdir} is not empty and config.checkpoint.resume is 'never'; give an "
            "empty one, or --config.checkpoint.resume=auto to go on with what is there"
        )
    if (workdir / "config.json").exists():
        old = records.read_config(workdir)
        for key in KEPT:
            before, now = (operator.attrgetter(key)(each) for each in (old, config))
            if before != now:
                raise UserError(
                    f"the run in {workdir} has config.{key}={before}, and now it is {now}: its "
                    "place in the data would be lost. Keep the value, or give another --workdir"
                )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"can't write to --workdir={workdir}: {error.strerror}") from None


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
    started = time.perf_counter()
    workdir = pathlib.Path(workdir).expanduser()

    # Devices, data.
    check_ranges(config)
    mesh = parallel.data_mesh()
    replicated = parallel.replicated(mesh)
    parallel.check_batch("batch_size", config.batch_size, mesh)
    parallel.check_batch("eval_batch_size", config.eval_batch_size, mesh)
    checkpoint.check_config(config.checkpoint)
    pipeline.check_config(config)
    train_source = sources.open_source(config.data, config.data.train_split)
    eval_source = sources.open_source(config.data, config.data.eval_split)
    sources.check_classes(eval_source.classes, train_source.classes, config.data.eval_split)
    config = resolve(config, train_source.classes)

    # Model and state: shapes first.
    model, optimizer, shapes = abstract_state(config, len(train_source))
    resolution = model.architecture.resolution

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

    for source in (train_source, eval_source):
        if source is eval_source or config.data.on_corrupt == "stop":
            pipeline.check_images(source, config.data.check_images, config.data.threads)
    check_workdir(workdir, config)

    with (
        Interruption(records.say) as interrupted,
        Checkpoints(workdir, config.checkpoint) as checkpoints,
        contextlib.closing(records.Records(workdir, config, train_source.classes)) as record,
    ):
        # State: arrays, from the newest checkpoint or fresh.
        state = checkpoints.restore(shapes, replicated, say=records.say)
        if state is None:
            key = random_key(config.seed, "init", 0)
            state = fresh_state(model, optimizer, resolution, key, replicated)
        start = int(state.step)
        if start > total:
            raise UserError(
                f"the run in {workdir} is at step {start}, past the {total} steps of config.epochs="
                f"{config.epochs:g}; raise it, or give another --workdir"
            )
        record.open(start)
        write_parameters(workdir, config, shapes)

        # Steps, compiled once, before the data starts to flow.
        compiled_at, seed = time.perf_counter(), np.uint32(config.seed)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), shapes
        )
        train_step = (
            jax.jit(
                make_train_step(model, optimizer, config),
                donate_argnums=0,
                out_shardings=replicated,
            )
            .lower(abstract, parallel.abstract_batch(batch_size, resolution, mesh), seed)
            .compile()
        )
        records.say(
            f"{'going on at' if start else 'starting at'} step {start} of {total}: "
            f"{sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes.params)):,} "
            f"parameters, {resolution} px, {examples:,} images, {mesh.size} "
            f"{jax.devices()[0].device_kind} device(s); compiled in "
            f"{time.perf_counter() - compiled_at:.1f} s"
        )
        evaluator = Evaluator(model, config, eval_source, resolution, mesh)

        def evaluate(step: int) -> Scores | None:
            """Both weights on the evaluation split; None where a signal came."""
            scores = {}
            for weights in ("raw", "ema"):
                result = evaluator(*state.weights(weights), should_stop=interrupted)
                if result is None:
                    return None
                scores |= {f"{weights}_{key}": value for key, value in result.items()}
            record.write(step, {"epoch": step * batch_size / examples, **scores})
            return scores

        # Data, from this step on.
        host, hosts = jax.process_index(), jax.process_count()
        batches = pipeline.train_batches(train_source, config, resolution, host, hosts)
        if config.data.synthetic:
            on_device = itertools.repeat(parallel.put_batch(batches[0], mesh))
        else:
            ahead = batches.read_ahead(config.data, start, total, config.data.processes)
            on_device = (parallel.put_batch(batch, mesh) for batch in ahead)
        schedule = optimizers.learning_rate(config, examples)

        def is_evaluated(step: int) -> bool:
            # At the end, and not just before it: epochs are rarely whole steps.
            return step == total or (step % eval_every == 0 and total - step >= eval_every // 2)

        meter, scores, saved = Meter(batch_size), None, start or None
        try:
            if start and is_evaluated(start):  # A signal may have come in between.
                scores = record.evaluation(start) or evaluate(start)
            with records.Progress(total, start) as progress:
                for step in range(start + 1, total + 1):
                    state, metrics = train_step(state, meter.next_batch(on_device), seed)
                    meter.add(step, metrics)
                    progress.advance(step)
                    if step == start + 1:
                        meter.check()
                        elapsed = time.perf_counter() - started
                        records.say(f"first step done {elapsed:.1f} s after the start")

                    if step % config.log_steps == 0 or step == total:
                        row = {"epoch": step * batch_size / examples}
                        row["learning_rate"] = float(schedule(step - 1))
                        row |= meter.window()
                        row["seconds_left"] = (total - step) * batch_size / row["images_per_second"]
                        progress.status(step, row)
                        record.write(step, row)

                    if not (is_evaluated(step) or step % save_every == 0 or interrupted()):
                        continue
                    meter.check()  # A state that is not finite never becomes a checkpoint.
                    with meter.paused():
                        scores = evaluate(step) if is_evaluated(step) else None
                        checkpoints.save(step, state, scores)
                    saved = step
                    if interrupted():
                        checkpoints.wait()
                        raise Interrupted(
                            f"stopped by {interrupted.name} after step {step} of {total}; saved in "
                            f"{workdir}. Run the same command again to go on"
                        )
        except (NonFiniteLossError, UserError) as error:  # A bad number, or an unreadable image.
            checkpoints.wait()
            kept = f"step {saved}" if saved else "none yet"
            raise type(error)(f"{error}. Last good checkpoint in {workdir}: {kept}") from None

        checkpoints.wait()
        if scores is None:  # Of a run that had been finished before.
            raise Interrupted(f"stopped by {interrupted.name}; the run in {workdir} is finished")

    if jax.process_index() == 0:
        draw_curves(records.read_metrics(workdir), workdir / "curves.png")
        minutes = (time.perf_counter() - started) / 60
        title = f"step {int(state.step)}, {minutes:.1f} min in this run"
        records.console.print(records.result_table(scores, title))
        records.say(f"curves: {workdir / 'curves.png'}   all else: {workdir}")
    return state, scores


def write_parameters(workdir: pathlib.Path, config: ConfigDict, shapes: TrainState) -> None:
    """parameters.csv: every parameter's name and shape, and what the rules decided for it."""
    if jax.process_index() != 0:
        return
    decided = [
        jax.tree.leaves(optimizers.multipliers(config.optimizer[key], shapes.params, key))
        for key in ("weight_decay_rules", "learning_rate_rules")
    ]
    lines = ["name,shape,weight_decay_multiplier,learning_rate_multiplier"]
    named = shapes_by_name(shapes.params)
    for (name, shape), decay, rate in zip(named.items(), *decided, strict=True):
        lines.append(f"{name},{'x'.join(map(str, shape))},{decay:g},{rate:g}")
    records.write_atomically(workdir / "parameters.csv", "\n".join(lines) + "\n")
