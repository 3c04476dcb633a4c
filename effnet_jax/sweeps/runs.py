"""The schedule of a sweep's runs, which is validated before any of them starts."""

import copy
import hashlib
import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import experiments, flags, models, scaling
from effnet_jax.data import sources
from effnet_jax.errors import UserError

# Keys that change neither what a run learns nor what its evaluation `val` measures.
WITHOUT_EFFECT = re.compile(
    r"config\.(seed|log_steps|eval_\w+|evaluations\.\w+(\.(epochs|weights|data\.data_dir))?"
    r"|(processes|nonfinite|mesh)\.\S+|checkpoint\.(?!init_)\w+|model\.remat|optimizer\.sharded"
    r"|data\.(data_dir|check_images|threads|processes|prefetch_\w+)): "
)


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: the name of the run's folder, unique in the sweep.
      series: the curve of the run in a figure, for example "width".
      label: its point on the curve, for example "w=1.4", the same for runs with different seeds.
      overrides: values of config keys that the run changes, for example {"model.width": 1.4}; in a
        schedule, the run's values of all keys that any run of the sweep changes.
    """

    name: str
    series: str
    label: str
    overrides: dict[str, Any]


class Scheduled(NamedTuple):
    """A run with its whole config and its network's cost; `experiment` and `sweep` are flags."""

    experiment: str
    sweep: str
    run: Run
    config: ConfigDict
    coefficients: scaling.Coefficients
    cost: scaling.Cost

    @property
    def training_cost(self) -> float:
        """Multiply-adds per image times epochs, or times images if the length is in steps."""
        config = self.config
        return self.cost.multiply_adds * (config.epochs or config.steps * config.batch_size)

    def row(self) -> dict[str, Any]:
        """The columns of the table of results that are known before the run.

        The values that the sweep changes are in columns config.KEY. `recipe` is a digest of all
        other values that affect what the run learns.
        """
        config, model = self.config, self.config.model
        row = {"config": self.experiment, "sweep": self.sweep, **self.run._asdict()}
        swept = row.pop("overrides").items()
        row |= {f"config.{key}": str(value) for key, value in swept if key != "seed"}
        changed = config_lib.changes(*map(config_lib.to_dict, (config_lib.get_config(), config)))
        kept = [line for line in changed if not WITHOUT_EFFECT.match(line)]
        kept = [line for line in kept if line.partition(":")[0] not in row]
        row["recipe"] = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
        row |= {"data": f"{config.data.name}/{config.data.eval_split}", "seed": config.seed}
        row |= {key: model[key] for key in ("base", "phi", "alpha", "beta", "gamma")}
        row |= {key: round(value, 6) for key, value in vars(self.coefficients).items()}
        row |= {"parameters": self.cost.parameters, "multiply_adds": self.cost.multiply_adds}
        row |= {key: config[key] for key in ("epochs", "steps", "batch_size")}
        return row


def expand(config: ConfigDict, sweep: str) -> Iterator[Run]:
    """The runs of a sweep: NAME[:ARGUMENT] (in configs/sweeps), FILE.py[:ARGUMENT] or `product`."""
    if re.match(r"[\w.]+=", sweep):
        return product(sweep)
    name, _, argument = sweep.partition(":")
    return experiments.find("sweeps", "sweep", name, "get_sweep")(config, argument)


def product(sweep: str) -> Iterator[Run]:
    """A run for each combination of values, as in "optimizer.sgd.momentum=0.8,0.9 seed=0,1"."""
    choices = {}
    for part in filter(None, _split(sweep, " ")):
        key, equals, values = part.partition("=")
        if not equals or key in choices:
            raise UserError(f"--sweep: {part!r} should be KEY=VALUE,VALUE, with each key once")
        choices[key] = _split(values, ",")
    names = config_lib.short_names(choices)
    series = ",".join(name for name in names if name != "seed") or "seed"
    for texts in itertools.product(*choices.values()):
        words = [f"{name}={text}" for name, text in zip(names, texts, strict=True)]
        label = ", ".join(word for word in words if not word.startswith("seed=")) or "base"
        name = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", "_".join(words))
        yield Run(name, series, label, dict(zip(choices, texts, strict=True)))


def _split(text: str, separator: str) -> list[str]:
    """Split a text at the separators that are not in parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def numbers(argument: str, default: Iterable[float]) -> list[float]:
    """The numbers in the argument of a sweep, such as "1,1.4,2", or the default if it has none."""
    try:
        values = [float(part) for part in argument.split(",") if part]
    except ValueError:
        raise UserError(f"{argument!r} should be numbers with commas, such as 1,1.4,2") from None
    if any(not 0 < number < 1000 for number in values):
        raise UserError(f"numbers of a sweep must be above 0 and below 1000; got {argument!r}")
    return values or list(default)


def scaled(
    config: ConfigDict, width: float = 1, depth: float = 1, resolution: float = 1
) -> dict[str, Any]:
    """Overrides that multiply the config's width, depth and resolution and change nothing else."""
    base = models.coefficients(config.model)
    return {
        "model.phi": None,
        "model.width": base.width * width,
        "model.depth": base.depth * depth,
        "model.resolution": round(base.resolution * resolution),
        "model.dropout": models.dropout(config.model),
    }


def compound(
    config: ConfigDict, phi: float, alpha: float, beta: float, gamma: float
) -> dict[str, Any]:
    """Overrides for compound scaling of the config's network, which also store the coefficients."""
    overrides = scaled(config, beta**phi, alpha**phi, gamma**phi)
    return overrides | {"model.alpha": alpha, "model.beta": beta, "model.gamma": gamma}


def plain(value: Any) -> Any:
    """A value with the numbers and arrays of NumPy and JAX as Python numbers and tuples."""
    if isinstance(value, np.ndarray | jax.Array):
        value = np.asarray(value)[()]  # An array without axes becomes a number.
    if isinstance(value, np.ndarray | tuple):
        return tuple(map(plain, value))
    if isinstance(value, np.floating):
        return float(str(value))  # np.float32(0.1) should become 0.1, not 0.10000000149.
    return value.item() if isinstance(value, np.generic) else value


def apply(config: ConfigDict, run: Run) -> ConfigDict:
    """A copy of the config with a run's overrides, converted to the types of the config's values.

    Raises:
      UserError: a key is unknown, or a value is bad or would be replaced by `progressive`.
    """
    arguments = [f"--config.{key}={plain(value)}" for key, value in run.overrides.items()]
    changed = flags.override(copy.deepcopy(config), arguments)
    for stages, key in config_lib.PROGRESSIVE.items():
        before, now = (operator.attrgetter(key)(each) for each in (config, changed))
        if changed.progressive[stages] and before != now:
            raise UserError(
                f"config.{key}={now} has no effect with config.progressive.{stages}="
                f"{changed.progressive[stages]}; set the latter to '()'"
            )
    return changed


def multiply_adds(config: ConfigDict, overrides: dict[str, Any]) -> int:
    """Multiply-adds of the config's network with overrides of keys of `model`."""
    model = config.model.copy_and_resolve_references()  # Copying the whole config is slow.
    model.update({key.removeprefix("model."): plain(value) for key, value in overrides.items()})
    return scaling.cost(models.architecture(model).layers()).multiply_adds


def make_schedule(config: ConfigDict, sweep: str, experiment: str = "") -> list[Scheduled]:
    """The runs of a sweep (see `expand`), each with its validated config and its cost.

    Raises:
      UserError: the sweep or a key is unknown, two runs have the same name or config, or a config
        is not valid.
    """
    config = copy.deepcopy(config)
    if config.model.num_classes is None:  # Costs depend on the number of classes.
        source = sources.open_source(config.data, config.data.train_split)
        config.model.num_classes = len(source.classes)
    schedule, names = [], {}
    for run in expand(config, sweep):
        if not re.fullmatch(r"[A-Za-z0-9_.=+-]+", run.name) or run.name.startswith("."):
            raise UserError(f"run name {run.name!r} can't be the name of a folder")
        if run.name in (each.run.name for each in schedule):
            raise UserError(f"sweep {sweep!r} has two runs with the name {run.name!r}")
        try:
            changed = apply(config, run)
            config_lib.validate(changed)
            coefficients = models.coefficients(changed.model)
            cost = scaling.cost(models.architecture(changed.model).layers())
        except UserError as error:
            raise UserError(f"run {run.name!r}: {error}") from None
        first = names.setdefault(json.dumps(config_lib.to_dict(changed), sort_keys=True), run.name)
        if first != run.name:
            raise UserError(
                f"sweep {sweep!r} has the same run twice, as {first!r} and {run.name!r}; list each "
                "value once"
            )
        schedule.append(Scheduled(experiment, sweep, run, changed, coefficients, cost))
    if not schedule:
        raise UserError(f"sweep {sweep!r} has no runs")
    swept = dict.fromkeys(key for each in schedule for key in each.run.overrides)
    return [
        each._replace(
            run=each.run._replace(
                overrides={key: operator.attrgetter(key)(each.config) for key in swept}
            )
        )
        for each in schedule
    ]
