"""Runs another sweep once for each seed: `seeds:3,methods:2,4` is methods:2,4 with seeds 0 to 2.

Runs are ordered by seed, so that those of later seeds find most programs in the compilation cache.
"""

from effnet_jax.errors import UserError
from effnet_jax.sweeps.runs import expand


def get_sweep(config, argument):
    count, _, inner = argument.partition(",")
    if not (count.isdecimal() and int(count) and inner):
        raise UserError(f"seeds needs a count and a sweep, as in seeds:3,methods; got {argument!r}")
    for seed in range(config.seed, config.seed + int(count)):
        for run in expand(config, inner):
            overrides = {**run.overrides, "seed": seed}
            yield run._replace(name=f"{run.name}_seed{seed}", overrides=overrides)
