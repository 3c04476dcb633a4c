"""From an experiment and a sweep to the table of runs, checked before any of them starts."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import models, scaling
from effnet_jax.data import sources
from effnet_jax.errors import UserError, check_choice, near


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder, unlike all others of the sweep.
      series: the curve of a figure that it belongs to, say "width".
      label: what sets it apart in its curve, say "w=1.4"; runs that differ by seed alone share it.
      overrides: what it changes in the config, by dotted key, say {"model.width": 1.4}.
    """

    name: str
    series: str
    label: str
    overrides: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run with its whole config and what its network costs.

    Attributes:
      experiment, sweep: as they were asked for.
    """

    experiment: str
    sweep: str
    run: Run
    config: ConfigDict
    coefficients: scaling.Coefficients
    cost: scaling.Cost


def expand(config: ConfigDict, sweep: str) -> Iterator[Run]:
    """The runs of "NAME", "NAME:ARGUMENT" (a file in configs/sweeps) or "FILE.py:ARGUMENT"."""
    name, _, argument = sweep.partition(":")
    return config_lib.find("sweeps", "sweep", name, "get_sweep")(config, argument)


def numbers(argument: str, default: Iterable[float]) -> list[float]:
    """The numbers of a sweep's argument, as in "1,1.4,2"; the default where there are none."""
    try:
        found = [float(part) for part in argument.split(",") if part]
    except ValueError:
        raise UserError(f"{argument!r} should be numbers with commas, as in 1,1.4,2") from None
    if any(not 0 < number < 1000 for number in found):
        raise UserError(f"numbers of a sweep must be above 0 and below 1000; got {argument!r}")
    return found or list(default)


def settings(argument: str, **defaults: float) -> dict[str, float]:
    """Settings of a sweep by name, as in "step=0.1,tolerance=0.2"."""
    for part in filter(None, argument.split(",")):
        key, _, value = part.partition("=")
        check_choice("setting of the sweep", key, defaults)
        try:
            defaults[key] = float(value)
        except ValueError:
            raise UserError(f"{part!r} should be a name and a number, as in step=0.1") from None
    return defaults


def scaled(
    config: ConfigDict, width: float = 1, depth: float = 1, resolution: float = 1
) -> dict[str, Any]:
    """Overrides that multiply the config's own width, depth and resolution, and nothing else."""
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
    """Overrides that scale the config's own network by the law, and note its coefficients."""
    overrides = scaled(config, beta**phi, alpha**phi, gamma**phi)
    return overrides | {"model.alpha": alpha, "model.beta": beta, "model.gamma": gamma}


def apply(config: ConfigDict, run: Run) -> ConfigDict:
    """A copy of the config with a run's overrides; raises UserError for a key it doesn't have."""
    config = config.copy_and_resolve_references()
    for dotted, value in run.overrides.items():
        *path, last = dotted.split(".")
        section = config
        try:
            for part in path:
                section = section[part]
            section[last]
            section[last] = value
        except (KeyError, AttributeError):
            keys = [key for key, _ in _flat(config)]
            raise UserError(
                f"run {run.name!r} sets config.{dotted}, which does not exist; did you mean "
                f"{near(dotted, keys, 2)}?"
            ) from None
        except TypeError as error:
            raise UserError(f"run {run.name!r} sets config.{dotted}={value!r}: {error}") from None
    return config.lock()


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def multiply_adds(config: ConfigDict, overrides: dict[str, Any]) -> int:
    """Of the network that the config describes with these overrides of `model`'s keys."""
    model = config.model.copy_and_resolve_references()  # The whole config would take long.
    model.update({key.removeprefix("model."): value for key, value in overrides.items()})
    return scaling.cost(models.architecture(model).layers()).multiply_adds


def with_classes(config: ConfigDict) -> ConfigDict:
    """A copy that knows the number of classes, on which the counts depend; the data has it."""
    config = config.copy_and_resolve_references()
    if config.model.num_classes is None:
        classes = sources.open_source(config.data, config.data.train_split).classes
        with config.unlocked():
            config.model.num_classes = len(classes)
    return config.lock()


def make_plan(config: ConfigDict, sweep: str, experiment: str = "") -> list[Planned]:
    """Every run of a sweep with its config and counts.

    Args:
      config: that the runs change.
      sweep: see `expand`.
      experiment: where the config is from, for the table of results.

    Raises:
      UserError: an unknown sweep or key, two runs with one name, a model that can't be built.
    """
    config = with_classes(config)
    planned, seen = [], set()
    for run in expand(config, sweep):
        if not re.fullmatch(r"[A-Za-z0-9_.=+-]+", run.name) or run.name.startswith("."):
            raise UserError(f"run name {run.name!r} can't be the name of a folder")
        if run.name in seen:
            raise UserError(f"sweep {sweep!r} has two runs with the name {run.name!r}")
        seen.add(run.name)
        changed = apply(config, run)
        try:
            config_lib.check_overrides(config, changed)
            config_lib.validate(changed)
            coefficients = models.coefficients(changed.model)
            cost = scaling.cost(models.architecture(changed.model).layers())
        except UserError as error:
            raise UserError(f"run {run.name!r}: {error}") from None
        planned.append(Planned(experiment, sweep, run, changed, coefficients, cost))
    if not planned:
        raise UserError(f"sweep {sweep!r} has no runs")
    return planned
