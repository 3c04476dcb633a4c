"""Finds alpha, beta, gamma: python -m effnet_jax.tools.search_scaling --config=FILE --workdir=DIR.

Trains every candidate of the grid (configs/sweeps/grid.py), ranks them by top-1, and proposes the
best. DIR/scaling.json is then the experiment with these coefficients, whose phi counts from its own
network: --config=configs/saved.py:DIR/scaling.json,phi=2. DIR/search.png shows the candidates.
"""

import json
import pathlib

import rich.console
import rich.table
from absl import flags
from ml_collections import ConfigDict

from effnet_jax import cli, models
from effnet_jax.report import drawing, figures, results
from effnet_jax.run import files
from effnet_jax.tools import launching

PHI = flags.DEFINE_float("phi", 1.0, "How far candidates are scaled: 2^phi times the cost.")
STEP = flags.DEFINE_float("step", 0.05, "Of the grid.")
TOLERANCE = flags.DEFINE_float("tolerance", 0.1, "Of alpha * beta^2 * gamma^2 around 2.")
EQUAL = flags.DEFINE_bool("equal", True, "Scale every candidate to the same real multiply-adds.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each candidate.", lower_bound=1)
WEIGHTS = flags.DEFINE_enum("weights", "ema", ("ema", "raw"), "Whose top-1 counts.")


def found_config(config: ConfigDict, best: results.Run) -> ConfigDict:
    """The experiment with the coefficients of `best`, its own network being that of phi = 0."""
    base, dropout = models.coefficients(config.model), models.dropout(config.model)
    config = config.copy_and_resolve_references()
    config.model.update(
        {
            "phi": 0.0,
            "base_width": base.width,
            "base_depth": base.depth,
            "base_resolution": base.resolution,
            "width": None,
            "depth": None,
            "resolution": None,
            "dropout": dropout,
            "alpha": best.alpha,
            "beta": best.beta,
            "gamma": best.gamma,
        }
    )
    return config


def ranking(points: list[results.Point]) -> rich.table.Table:
    """The candidates, best first."""
    columns = ("alpha", "beta", "gamma", "top-1", "spread", "seeds", "multiply-adds")
    table = rich.table.Table(*columns, title="candidates, best first")
    for point in points:
        run = point.runs[0]
        spread = "unknown" if point.sd is None else f"{point.sd:.2%}"
        scores = (f"{point.mean:.2%}", spread, str(point.n), f"{point.multiply_adds:,}")
        table.add_row(*(f"{value:g}" for value in (run.alpha, run.beta, run.gamma)), *scores)
    return table


def propose(config: ConfigDict, csv: pathlib.Path, weights: str, root: pathlib.Path) -> ConfigDict:
    """Ranks what the grid's runs found, says so, and writes root/scaling.json and root/search.png.

    Args:
      config: of the experiment whose network was scaled.
      csv: results of the grid.
      weights: whose top-1 counts, "ema" or "raw".
      root: where the two files go.

    Returns:
      The experiment with the best candidate's coefficients.
    """
    found = results.read([csv], f"val/{weights}")
    points = sorted(found.points("the search", "grid"), key=lambda point: -point.mean)
    best = points[0].runs[0]
    rich.console.Console().print(ranking(points))
    figures.figure_grid(found).figure.savefig(root / "search.png", dpi=drawing.DPI)
    config = found_config(config, best)
    path = root / "scaling.json"
    files.write_json(path, json.loads(config.to_json_best_effort()))
    print(f"alpha={best.alpha:g} beta={best.beta:g} gamma={best.gamma:g}")
    if len(points) > 1 and points[0].sd is not None:
        lead = points[0].mean - points[1].mean
        print(f"It leads the next by {lead:.2%}; its spread over seeds is {points[0].sd:.2%}.")
    print(f"--config=configs/saved.py:{path},phi=1 scales by them; the picture: {root}/search.png")
    return config


def main() -> None:
    grid = f"step={STEP.value:g},tolerance={TOLERANCE.value:g},phi={PHI.value:g}"
    launched = launching.launch(f"seeds:{SEEDS.value},grid:{grid},equal={int(EQUAL.value)}")
    if launched is not None:
        _, folder, csv = launched
        propose(launching.CONFIG.value, csv, WEIGHTS.value, folder.root)


if __name__ == "__main__":
    cli.run_with_flags(main, default_config=launching.DEFAULT_CONFIG, computes=False)
