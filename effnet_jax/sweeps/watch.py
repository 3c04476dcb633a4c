"""What a person sees of a sweep: the plan as a table, a live one on a terminal, lines elsewhere."""

import time
from typing import Any

import rich.live
import rich.table

from effnet_jax.run import writers
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.schedule import Planned

FINISHED = 10  # Rows of finished runs in the live table.
EVERY = 60.0  # Seconds between two lines of progress where there is no terminal.


def costs(plan: list[Planned]) -> list[float]:
    """What each run's training costs: multiply-adds of an image, times epochs."""
    return [planned.cost.multiply_adds * planned.config.epochs for planned in plan]


def title(plan: list[Planned], folder: Folder) -> str:
    """How much there is to do."""
    cost = costs(plan)
    times = f"{sum(cost) / cost[0]:.1f} times the first's cost"
    return f"{len(plan)} runs in {folder.root}, together {times}"


def plan_table(plan: list[Planned], folder: Folder, memory: dict[str, float]) -> rich.table.Table:
    """The runs with what they are and cost, before anything starts.

    Args:
      plan: the runs.
      folder: where finished ones are looked for.
      memory: predicted bytes of each run.
    """
    names = ("run", "width", "depth", "pixels", "seed", "parameters", "multiply-adds", "cost")
    table = rich.table.Table(*names, "memory", "state", title=title(plan, folder))
    cost = costs(plan)
    for planned, relative in zip(plan, cost, strict=True):
        scale, name = planned.coefficients, planned.run.name
        table.add_row(
            name,
            f"{scale.width:.4g}",
            f"{scale.depth:.4g}",
            str(scale.resolution),
            str(planned.config.seed),
            f"{planned.cost.parameters:,}",
            f"{planned.cost.multiply_adds:,}",
            f"{relative / cost[0]:.2f}x",
            f"{memory[name] / 2**30:.1f} GiB",
            state(folder, name),
        )
    return table


def state(folder: Folder, name: str) -> str:
    """finished, begun or to do."""
    if folder.done(name):
        return "finished"
    return "begun" if folder.workdir(name).exists() else "to do"


def estimate(plan: list[Planned], folder: Folder) -> float | None:
    """Minutes of one run after another that are left, from the finished ones; None where none is.

    A run's time is taken to grow with its cost, at the rate of all finished runs together.
    """
    finished = [(cost, folder.done(p.run.name)) for cost, p in zip(costs(plan), plan, strict=True)]
    left = [cost for cost, done in finished if done is None]
    finished = [(cost, done) for cost, done in finished if done]
    if not finished:
        return None
    rate = sum(done["wall_minutes"] for _, done in finished) / sum(cost for cost, _ in finished)
    return rate * sum(left)


class Watch:
    """The live table, as a context."""

    def __init__(self, folder: Folder, plan: list[Planned]):
        self._folder, self._plan = folder, plan
        self._errors: dict[str, str] = {}
        self._finished: list[str] = []
        self._drawn = time.monotonic()
        self._live = None

    def __enter__(self) -> "Watch":
        if writers.ON_TERMINAL:
            # Redrawn by refresh() alone: without a thread beside it.
            self._live = rich.live.Live(console=writers.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def _progress(self, name: str) -> dict[str, Any]:
        """The newest row of metrics of a run."""
        rows = writers.read_metrics(self._folder.workdir(name))
        return rows[-1] if rows else {}

    def ended(self, name: str, error: str | None) -> None:
        """Notes, and says where there is no table, how a run ended."""
        if error:
            self._errors[name] = error
            text = f"failed ({error}):\n{self._folder.last_lines(name)}"
        else:
            self._finished.append(name)
            done = self._folder.done(name)
            text = (
                f"top-1 {done['ema_top1']:.2%} (averaged), {done['raw_top1']:.2%} (raw) after "
                f"{done['wall_minutes']:.1f} min"
            )
        writers.say(f"{name}: {text}")

    def refresh(self, running: list[str], left: list[str]) -> None:
        """Draws the table, once a second; elsewhere a line a minute."""
        now = time.monotonic()
        if now - self._drawn < (1.0 if self._live else EVERY):
            return
        self._drawn = now
        minutes = estimate(self._plan, self._folder)
        rest = "" if minutes is None else f", {minutes / max(1, len(running)):.0f} min left"
        title = f"{len(self._plan) - len(left)} of {len(self._plan)} runs ended{rest}"
        rows = []
        for name in running:
            row = self._progress(name)
            speed = f"{row['images_per_second']:.0f} images/s" if "images_per_second" in row else ""
            rows.append((name, f"epoch {row.get('epoch', 0):.1f}", speed))
        if not self._live:
            writers.say(f"{title}; running: " + "; ".join(" ".join(row) for row in rows))
            return
        table = rich.table.Table("run", "state", "", "top-1", title=title)
        for row in rows:
            table.add_row(*row, style="bold")
        for name, error in self._errors.items():
            table.add_row(name, f"failed: {error}", style="red")
        # The newest of the finished: what doesn't fit on the screen would push the others off it.
        for name in reversed(self._finished[-FINISHED:]):
            if done := self._folder.done(name):
                table.add_row(
                    name, "finished", f"{done['wall_minutes']:.1f} min", f"{done['ema_top1']:.2%}"
                )
        self._live.update(table, refresh=True)
