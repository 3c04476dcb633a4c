"""What a run asks of its workdir, and leaves there, before its first step."""

import operator
import pathlib
import tempfile

import jax
from ml_collections import ConfigDict

from effnet_jax import hosts, lock, records
from effnet_jax.errors import UserError
from effnet_jax.training import optimizer as optimizers
from effnet_jax.training.state import TrainState
from effnet_jax.trees import shapes_by_name

# A run's place in its data follows from these and the step; a run that goes on has to keep them.
KEPT = ("seed", "batch_size", "data.source", "data.name", "data.train_split")


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes the workdir; raises UserError where this run may not, or can't, write to it."""
    resume = config.checkpoint.resume
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file")
    if resume == "never" and hosts.is_first() and _holds_a_run(workdir):
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


def _holds_a_run(workdir: pathlib.Path) -> bool:
    """Whether there is more than a start that failed has left."""
    return workdir.is_dir() and any(
        path.name != lock.NAME and not (path.is_dir() and not any(path.iterdir()))
        for path in workdir.iterdir()
    )


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
