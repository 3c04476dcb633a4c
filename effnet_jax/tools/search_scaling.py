"""Searches for alpha, beta and gamma on a small grid, as the paper does.

Examples:
  effnet-jax search_scaling --config=cluttered_digits --workdir=runs/grid --dry_run
  effnet-jax search_scaling --config=digit_pairs --grid_step=0.15 --seeds=3 --workdir=runs/grid

Trains every candidate of the grid (configs/sweeps/grid.py), ranks them by top-1, and proposes the
best. DIR/scaling.json is the experiment with the best coefficients; its phi is relative to the
network of --config: --config=DIR/scaling.json:phi=2. DIR/search.png shows the candidates.
"""

import argparse
import copy
import pathlib

import rich.table
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import flags, models
from effnet_jax.errors import check_choice
from effnet_jax.report import drawing, figures, results
from effnet_jax.tools import show, sweep

PARSER = sweep.parser(__doc__)
add, same = PARSER.group("search"), argparse.BooleanOptionalAction
add("--phi", type=float, default=1.0, help="scale of the candidates, at 2^phi times the cost")
add("--grid_step", type=float, default=0.05, help="distance of neighbouring values in the grid")
sum_of = "largest difference between alpha * beta^2 * gamma^2 and 2"
add("--tolerance", type=float, default=0.1, help=sum_of)
add("--equal", action=same, default=True, help="scale every candidate to the same multiply-adds")
add("--seeds", type=flags.count, default=1, metavar="N", help="runs of each candidate")
near = "try only candidates within two steps of the config's own coefficients"
add("--near", action="store_true", help=near)
rates = "results of a `rates` sweep, from which each candidate gets its best learning rate"
add("--rates", metavar="CSV", help=rates)
add("--evaluation", default=results.EVALUATION)


def found_config(config: ConfigDict, best: results.Run) -> ConfigDict:
    """Returns the experiment with the coefficients and swept settings of the run `best`.

    Its phi = 0 is the network that was scaled.
    """
    base, dropout = models.coefficients(config.model), models.dropout(config.model)
    values = {"phi": 0.0, "width": None, "depth": None, "resolution": None, "dropout": dropout}
    values |= {key: getattr(best, key) for key in ("alpha", "beta", "gamma")}
    kept = [f"--config.{key}={value}" for key, value in best.swept if not key.startswith("model.")]
    config = flags.override(copy.deepcopy(config), kept)
    config.model.update(values | {f"base_{key}": value for key, value in vars(base).items()})
    return config


def ranking(points: list[results.Point]) -> rich.table.Table:
    """A table of the candidates, best first."""
    columns = ("alpha", "beta", "gamma", "top-1", "spread", "seeds", "multiply-adds")
    table = rich.table.Table(*columns, title="candidates, best first")
    for point in points:
        run = point.runs[0]
        spread = "unknown" if point.sd is None else f"{point.sd:.2%}"
        scores = (f"{point.mean:.2%}", spread, str(point.n), f"{point.multiply_adds:,}")
        table.add_row(*(f"{value:g}" for value in (run.alpha, run.beta, run.gamma)), *scores)
    return table


def propose(
    config: ConfigDict,
    csv: pathlib.Path,
    evaluation: str,
    root: pathlib.Path,
    sweep: str | None = None,
) -> None:
    """Ranks the candidates of a sweep by top-1; writes root/scaling.json and root/search.png.

    Args:
      config: the experiment that was scaled.
      csv: the results of the sweep.
      evaluation: the evaluation and weights whose top-1 counts, such as "val/ema".
      root: the folder to write to.
      sweep: the text that chose the sweep; None: all rows in the CSV file count.
    """
    found = results.read([csv], evaluation, sweep=sweep)
    points = sorted(found.points("the search", "grid"), key=lambda point: -point.mean)
    best = points[0].runs[0]
    show(ranking(points))
    figures.figure_grid(found).figure.savefig(root / "search.png", dpi=drawing.DPI)
    path = root / "scaling.json"
    config_lib.save(found_config(config, best), path)
    print(f"alpha={best.alpha:g} beta={best.beta:g} gamma={best.gamma:g}")
    if len(points) > 1 and points[0].sd is not None:
        lead = points[0].mean - points[1].mean
        spread = f"its standard deviation over seeds is {points[0].sd:.2%}"
        print(f"The best candidate leads the next by {lead:.2%}; {spread}.")
    print(f"--config={path}:phi=1 scales by these coefficients; picture: {root}/search.png")


def main(args: argparse.Namespace) -> None:
    entries = args.config.evaluations.items()
    known = [f"{name}/{weights}" for name, entry in entries for weights in entry.weights]
    check_choice("--evaluation", args.evaluation, known)
    grid = f"step={args.grid_step:g},tolerance={args.tolerance:g},phi={args.phi:g}"
    if args.near:
        best = args.config.model
        grid += f",alpha={best.alpha:g},beta={best.beta:g},gamma={best.gamma:g}"
        grid += f",within={2 * args.grid_step:g}"
    search = f"seeds:{args.seeds},grid:{grid},equal={int(args.equal)}"
    search = f"tuned:{args.rates},{search}" if args.rates else search
    if csv := sweep.launch(args, search):
        root = pathlib.Path(args.workdir).expanduser()
        propose(args.config, csv, args.evaluation, root, search)
