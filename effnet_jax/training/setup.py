"""What a run needs before its first step, built and checked before any compute is spent."""

import functools
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import parallel
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import pipeline, sources
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError
from effnet_jax.run import environment, files, notify, trackers
from effnet_jax.run.processes import Alone
from effnet_jax.run.workdirs import Workdir
from effnet_jax.run.writers import say
from effnet_jax.training import freezing, from_weights, profiling, progressive
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training.clock import Clock, Stragglers
from effnet_jax.training.evaluations import Evaluations
from effnet_jax.training.progressive import Stage
from effnet_jax.training.state import TrainState, abstract_state, fresh_state
from effnet_jax.training.step import random_key
from effnet_jax.trees import shapes_by_name

# What a run that resumes has to keep, and why.
KEPT = dict.fromkeys(
    ("seed", "batch_size", "data.source", "data.name", "data.train_split"),
    "its place in the data would be lost",
) | {"fine_tune.freeze": "its checkpoints have the optimizer's state for other parameters"}


class Run:
    """What a run's loop needs, built once; raises UserError for anything that can't work.

    `config` is resolved, `source` has the training records, `model` is at the resolution of
    evaluations, and `shapes` and `shardings` are the state's. `total` and `save_every` are steps,
    and `profiled` is a window of them. `workdir` is a local folder, and `address` where its files
    are for people and checkpoints.
    """

    def __init__(self, config: ConfigDict, place: Workdir, processes: Alone, clock: Clock):
        self.workdir, self.address = place.folder, place.address
        self.processes, self.clock = processes, clock
        self.mesh = mesh = parallel.with_model_axis(parallel.data_mesh(), config)
        config_lib.validate(config, parallel.data_shards(mesh))
        if processes.is_first:
            trackers.check(config.writers)
        self.stragglers = Stragglers(processes)
        self.notify = notify.Notifier(config.notify.command, processes.is_first)
        processes.watch(config.processes, functools.partial(self.notify, "alarm"))
        self.source = source = sources.open_source(config.data, config.data.train_split)
        if np.ndim(pipeline.read(source, 0)["label"]):
            raise UserError(
                f"config.data.label={config.data.label!r} is a set of labels for each image, which "
                "can be evaluated on and not trained on"
            )
        parallel.check_processes(len(source), "training")
        self.config = config = resolve(config, source.classes, len(source))
        self.examples = optimizers.epoch_examples(config, len(source))
        self.model, self.optimizer, self.shapes = abstract_state(config, len(source))
        self.total = optimizers.duration(config, "epochs", self.examples)
        if self.total < 1:
            whole = " (config.epoch_steps='whole': an epoch's last, smaller step is left out)"
            raise UserError(
                f"config.epochs={config.epochs} of {len(source)} images is less than one step of "
                f"batch_size={config.batch_size}{whole * (config.epoch_steps == 'whole')}"
            )
        self.profiled = profiling.window(config.profile.steps, self.total)
        self.schedule = optimizers.learning_rate(config, len(source))
        self.shardings = parallel.state_sharding(self.shapes, mesh, config.optimizer.sharded)
        self.stages = progressive.stages(config, len(source))
        every = optimizers.duration(config, "checkpoint.save_epochs", self.examples)
        self.save_every = max(1, every)
        self.evaluations = Evaluations(config, source, self.model, mesh, processes)

    def epoch(self, step: int) -> float:
        return step * self.config.batch_size / self.examples

    def stage(self, step: int) -> Stage:
        """The stage that step `step` belongs to."""
        return progressive.after(self.stages, step - 1)[0]

    def is_saved(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.stage(step).last

    def batches(self, step: int, skipped: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of the steps after `step`, on the devices; read ahead to a stage's end.

        Stages do not affect which images they contain. Roll-backs passed over `skipped` batches.
        """
        place, data = (self.processes.index, self.processes.count), self.config.data
        for stage in progressive.after(self.stages, step):
            first, last = max(step, stage.first) + skipped, stage.last + skipped
            made = pipeline.train_batches(self.source, stage.config, stage.resolution, *place)
            if data.synthetic:
                yield from itertools.repeat(parallel.put_batch(made[0], self.mesh), last - first)
            else:
                for batch in made.read_ahead(data, first, last, data.processes):
                    yield parallel.put_batch(batch, self.mesh)

    def newest_state(
        self, checkpoints: Checkpoints, init: Callable[[], Any] | None = None
    ) -> TrainState:
        """The state of the newest checkpoint; without one, a fresh state or that of `init`."""
        saved = checkpoints.restore(self.shapes, self.shardings)
        if saved is not None:
            return saved
        key, size = random_key(self.config.seed, "init", 0), self.model.architecture.resolution
        state = fresh_state(self.model, self.optimizer, size, key, self.shardings)
        if init is None:
            return state
        where = f"config.init.weights={self.config.init.weights}"
        return from_weights.start_from(state, init(), self.source.classes, where)

    def describe(self, start: int) -> list[str]:
        """Lines about the run, for its start."""
        leaves = jax.tree.leaves(self.shapes.params)
        return [
            f"{'resuming' if start else 'starting'} at step {start} of {self.total}: "
            f"{sum(np.prod(leaf.shape, dtype=int) for leaf in leaves):,} parameters, "
            f"{self.model.architecture.resolution} px, {len(self.source):,} images, "
            f"{self.mesh.size} {jax.devices()[0].device_kind} device(s)",
            f"training data: {self.source.summary()}",
            *self.source.warnings(),
            *(
                f"evaluation {name!r}: {each.summary()}"
                for name, each in self.evaluations.sources.items()
            ),
            *parallel.describe_mesh(self.mesh),
            *parallel.describe_batch_norm(self.config, parallel.data_shards(self.mesh)),
            *freezing.describe(self.config.fine_tune, self.shapes.params),
            *optimizers.warnings(self.config, self.examples),
            *progressive.describe(self.stages),
        ]

    def write_files(self, step: int) -> None:
        """Writes config.json, classes.json, parameters.csv, and a line of runs.jsonl.

        A config that differs from the last one is kept as config_until_step_N.json.
        """
        path, config = self.workdir / config_lib.FILE, self.config
        if path.exists():
            old = json.loads(path.read_text())
            if changes := config_lib.changes(old, config_lib.to_dict(config)):
                say("resuming with a changed config:\n  " + "\n  ".join(changes))
                os.replace(path, self.workdir / f"config_until_step_{step}.json")
        config_lib.save(config, path)
        classes = json.dumps(self.source.classes)
        files.write_atomically(self.workdir / "classes.json", f"{classes}\n")
        lines = ["name,shape,weight_decay_multiplier,learning_rate_multiplier,is_frozen"]
        params, fine = self.shapes.params, config.fine_tune
        still, by_depth = freezing.frozen(fine, params), freezing.rates(fine, params)
        decays, rates = (
            jax.tree.leaves(optimizers.multipliers(config.optimizer[key], params, key))
            for key in ("weight_decay_rules", "learning_rate_rules")
        )
        columns = shapes_by_name(params).items(), decays, rates, jax.tree.leaves(by_depth)
        for (name, shape), decay, rate, factor in zip(*columns, strict=True):
            numbers = f"{decay:g},{rate * factor:g},{int(name in still)}"
            lines.append(f"{name},{'x'.join(map(str, shape))},{numbers}")
        files.write_atomically(self.workdir / "parameters.csv", "\n".join(lines) + "\n")
        data = {"train": self.source, **self.evaluations.sources}
        run = {"data": {name: sources.identity(each) for name, each in data.items()}}
        run |= {"start_step": step, "records": len(self.source), **environment.describe_run()}
        with open(self.workdir / "runs.jsonl", "a") as file:
            file.write(json.dumps(run) + "\n")


def prepare(config: ConfigDict, place: Workdir, processes: Alone, clock: Clock) -> Run:
    """Builds a run, checks its images, and makes its workdir; raises UserError, as `Run`."""
    run = Run(config, place, processes, clock)
    config, seconds = run.config, run.config.processes.start_seconds
    train = [run.source] if config.data.on_corrupt == "stop" else []
    for source in (*run.evaluations.sources.values(), *train):
        pipeline.check_images(source, config.data.check_images, config.data.threads)
    _check_workdir(place, config, processes)
    _check_data(place, run.source)
    _check_batch_norm(place, config)

    def facts() -> dict[str, Any]:
        data = {"train": run.source, **run.evaluations.sources}
        prints = {name: sources.fingerprint(each) for name, each in data.items()}
        return environment.start_facts(config, prints)

    processes.check_same("start", facts, seconds)
    processes.check_shared(place.address, seconds)
    return run


def _check_workdir(place: Workdir, config: ConfigDict, processes: Alone) -> None:
    """Makes the workdir; raises UserError where this run may not, or can't, write to it."""
    workdir, where = place.folder, place.address
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file")
    content = (  # What more there is than a failed start leaves; read only where it counts.
        path
        for path in workdir.glob("*")
        if path.name != files.RUN_LOCK and not (path.is_dir() and not any(path.iterdir()))
    )
    if config.checkpoint.resume == "never" and processes.is_first and any(content):
        raise UserError(
            f"--workdir={where} is not empty and config.checkpoint.resume is 'never'; give an "
            "empty one, or --config.checkpoint.resume=auto to resume what is there"
        )
    if (workdir / config_lib.FILE).exists():
        old = config_lib.load(workdir)
        for key, reason in KEPT.items():
            before, now = (operator.attrgetter(key)(each) for each in (old, config))
            if before != now:
                raise UserError(
                    f"the run in {where} has config.{key}={before!r}, and now it is {now!r}: "
                    f"{reason}. Keep the value, or give another --workdir: there, "
                    f"--config.init.weights={where} starts from these weights"
                )
    files.make_folder("--workdir", workdir)


def _check_data(place: Workdir, source: Source) -> None:
    """Raises UserError where the training data has other classes or records than the run had.

    Says so where some of the images are others.
    """
    workdir, where = place.folder, place.address
    path, runs = workdir / "classes.json", files.read_rows(workdir / "runs.jsonl")
    classes, records = source.classes, [row["records"] for row in runs if "records" in row]
    wrong = ""
    if path.exists() and (before := tuple(files.read_json(path))) != classes:
        wrong = f"{len(before)} classes, and now there are {len(classes)}: "
        wrong += sources.difference(classes, before, "the data", "the run")
    elif records and records[-1] != len(source):
        wrong = f"{records[-1]:,} training images, and now there are {len(source):,}"
    if wrong:
        raise UserError(
            f"the run in {where} has {wrong}. Labels and the place in the data would be others. "
            "Restore the data, or give another --workdir: there, "
            f"--config.init.weights={where} starts from these weights"
        )
    known = [row["data"]["train"] for row in runs if "train" in row.get("data", {})]
    if known and (now := sources.identity(source)) != known[-1]:
        say(
            f"warning: the training images have changed since the run in {where} last started "
            f"(then {known[-1]}, now {now}). Their order, and which of a folder without splits are "
            "held out for evaluation, may be others than before"
        )


def _check_batch_norm(place: Workdir, config: ConfigDict) -> None:
    """Warns if BatchNorm's groups have another size than before, as on other devices."""
    runs = files.read_rows(place.folder / "runs.jsonl")
    if not (known := [row["devices"] for row in runs if "devices" in row]):
        return
    before, now = known[-1], jax.device_count()
    old = parallel.batch_norm_group(config_lib.load(place.folder), before)
    if (new := parallel.batch_norm_group(config, now)) != old:
        say(
            f"warning: BatchNorm's groups now have {new} examples, on {now} device(s); the run in "
            f"{place.address} had groups of {old}, on {before}. To keep that size, add "
            f"--config.model.batch_norm_scope=group --config.model.batch_norm_group={old}"
        )


def resolve(config: ConfigDict, classes: tuple[str, ...], images: int) -> ConfigDict:
    """A copy of the config that also holds elsewhere: absolute data_dir, number of classes.

    With `fit_batch_size` the batch is at most as large as the training data has `images`. Raises
    UserError where there are fewer, or more classes than outputs.
    """
    config = config.copy_and_resolve_references()
    if config.data.data_dir is not None:
        config.data.data_dir = os.path.abspath(os.path.expanduser(config.data.data_dir))
    given, count = config.model.num_classes, len(classes)
    if given is not None and given < count:
        raise UserError(
            f"config.model.num_classes={given}, and the data has {count} classes; leave it out to "
            "take as many as the data has"
        )
    unit = jax.device_count() * config.accumulation_steps
    if config.fit_batch_size and unit <= images < config.batch_size:
        config.batch_size = images // unit * unit
        say(f"batch_size lowered to {config.batch_size}: there are {images} training images")
    if config.batch_size > images and not config.data.synthetic:
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {images} training images; "
            f"lower it, or give --config.fit_batch_size=True"
        )
    with config.unlocked():
        config.model.num_classes = given or count
    return config
