"""Runs another sweep with each network's best learning rate: `tuned:FILE.csv,seeds:3,methods:2,4`.

FILE.csv has the results of a `rates` sweep of the same networks, which must have been evaluated on
other images than this sweep. Each network (width, depth and resolution) gets the learning rate with
the best mean top-1 of the averaged weights.
"""

import collections
import pathlib
import statistics

from effnet_jax import models
from effnet_jax.errors import UserError
from effnet_jax.report import results
from effnet_jax.sweeps.runs import apply, expand


def best_rates(path: pathlib.Path, key: str) -> dict[tuple, float]:
    """Returns the best value of `key`, a learning rate, for each network in a file of results."""
    scores = collections.defaultdict(lambda: collections.defaultdict(list))
    for run in results.read([path]).runs:
        if rate := dict(run.swept).get(key):
            top1 = run.scores[f"{results.EVALUATION}/top1"]
            scores[run.width, run.depth, run.resolution][float(rate)].append(top1)
    means = {
        network: {rate: statistics.fmean(each) for rate, each in rates.items()}
        for network, rates in scores.items()
    }
    return {network: max(rates, key=rates.get) for network, rates in means.items()}


def get_sweep(config, argument):
    file, csv, inner = argument.partition(".csv,")
    if not (csv and inner):
        raise UserError(
            f"tuned needs FILE.csv and a sweep, as in tuned:rates.csv,methods; got {argument!r}"
        )
    key = f"optimizer.{config.optimizer.name}.learning_rate"
    best = best_rates(pathlib.Path(file + csv[:-1]), key)
    for run in expand(config, inner):
        scale = models.coefficients(apply(config, run).model)
        network = (round(scale.width, 6), round(scale.depth, 6), scale.resolution)
        if network not in best:
            raise UserError(
                f"{file}.csv has no run of {run.name!r} with {key}; first run "
                f"--sweep=rates:RATES,{inner} and evaluate it on held-out training images"
            )
        yield run._replace(overrides={**run.overrides, key: best[network]})
