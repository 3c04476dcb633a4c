"""What a run asks of its workdir, and writes there, before its first step."""

import json
import operator
import os
import pathlib
import tempfile

import jax
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax.errors import UserError
from effnet_jax.run import environment, files
from effnet_jax.run.processes import Alone
from effnet_jax.run.writers import say
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training.state import TrainState
from effnet_jax.trees import shapes_by_name

# A run's place in its data follows from these and the step: a run that resumes has to keep them.
KEPT = ("seed", "batch_size", "data.source", "data.name", "data.train_split")


def check(workdir: pathlib.Path, config: ConfigDict, processes: Alone) -> None:
    """Makes the workdir; raises UserError where this run may not, or can't, write to it."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file")
    never = config.checkpoint.resume == "never"
    if never and processes.is_first and _holds_a_run(workdir):
        raise UserError(
            f"--workdir={workdir} is not empty and config.checkpoint.resume is 'never'; give an "
            "empty one, or --config.checkpoint.resume=auto to resume what is there"
        )
    if (workdir / config_lib.FILE).exists():
        old = config_lib.load(workdir)
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


def _holds_a_run(workdir: pathlib.Path) -> bool:
    """Whether there is more than a failed start leaves."""
    return workdir.is_dir() and any(
        path.name != files.RUN_LOCK and not (path.is_dir() and not any(path.iterdir()))
        for path in workdir.iterdir()
    )


def write(
    workdir: pathlib.Path,
    config: ConfigDict,
    classes: tuple[str, ...],
    shapes: TrainState,
    step: int,
) -> None:
    """Writes config.json, classes.json, parameters.csv, and a line of runs.jsonl.

    A config that differs from the last one is kept as config_until_step_N.json.
    """
    path = workdir / config_lib.FILE
    if path.exists():
        old = json.loads(path.read_text())
        if changes := config_lib.changes(old, config_lib.to_dict(config)):
            say("resuming with a changed config:\n  " + "\n  ".join(changes))
            os.replace(path, workdir / f"config_until_step_{step}.json")
    config_lib.save(config, path)
    files.write_atomically(workdir / "classes.json", json.dumps(classes) + "\n")
    files.write_atomically(workdir / "parameters.csv", _parameters(config, shapes))
    with open(workdir / "runs.jsonl", "a") as file:
        file.write(json.dumps({"start_step": step, **environment.describe_run()}) + "\n")


def _parameters(config: ConfigDict, shapes: TrainState) -> str:
    """Every parameter's name and shape as CSV, and what the rules decided for it."""
    decided = [
        jax.tree.leaves(optimizers.multipliers(config.optimizer[key], shapes.params, key))
        for key in ("weight_decay_rules", "learning_rate_rules")
    ]
    lines = ["name,shape,weight_decay_multiplier,learning_rate_multiplier"]
    shown = shapes_by_name(shapes.params).items()
    for (name, shape), decay, rate in zip(shown, *decided, strict=True):
        lines.append(f"{name},{'x'.join(map(str, shape))},{decay:g},{rate:g}")
    return "\n".join(lines) + "\n"
