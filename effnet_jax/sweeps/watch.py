"""What people see of a sweep: the schedule as a table, and how far the runs are."""

import rich.table

from effnet_jax.run import writers
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.schedule import Scheduled


def table(schedule: list[Scheduled], folder: Folder) -> rich.table.Table:
    """The runs with their scale, cost and state: finished, begun or to do."""
    first = schedule[0].training_cost
    times = sum(scheduled.training_cost for scheduled in schedule) / first
    title = f"{len(schedule)} runs in {folder.root}, together {times:.1f} times the first's cost"
    names = ("run", "width", "depth", "pixels", "seed", "parameters", "multiply-adds", "cost")
    result = rich.table.Table(*names, "state", title=title)
    for scheduled in schedule:
        scale, name = scheduled.coefficients, scheduled.run.name
        begun = "begun" if folder.workdir(name).exists() else "to do"
        result.add_row(
            name,
            f"{scale.width:.4g}",
            f"{scale.depth:.4g}",
            str(scale.resolution),
            str(scheduled.config.seed),
            f"{scheduled.cost.parameters:,}",
            f"{scheduled.cost.multiply_adds:,}",
            f"{scheduled.training_cost / first:.2f}x",
            "finished" if folder.done(name) else begun,
        )
    return result


def estimate(schedule: list[Scheduled], folder: Folder) -> float | None:
    """Minutes that the runs to do take one after another; None before the first is finished.

    A run's time is taken to grow with its cost, at the rate of all finished runs together.
    """
    minutes, done_cost, left = 0.0, 0.0, 0.0
    for scheduled in schedule:
        if done := folder.done(scheduled.run.name):
            minutes += done["wall_minutes"]
            done_cost += scheduled.training_cost
        else:
            left += scheduled.training_cost
    return minutes / done_cost * left if done_cost else None


def progress(schedule: list[Scheduled], folder: Folder, pending: list[str]) -> str:
    """The state of a sweep in one line; `pending` runs have not ended."""
    text = f"{len(schedule) - len(pending)} of {len(schedule)} runs ended"
    if minutes := estimate(schedule, folder):
        text += f", {minutes:.0f} min left of one run after another"
    for name in pending:
        if rows := writers.read_metrics(folder.workdir(name)):
            text += f"; {name} at epoch {rows[-1]['epoch']:.1f}"
    return text
