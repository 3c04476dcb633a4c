"""Depth alone (paper, figure 3 middle): `depth`, or `depth:1,2,4` for other multiples."""

from effnet_jax.sweeps.runs import Run, numbers, scaled

POINTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


def get_sweep(config, argument):
    for d in numbers(argument, POINTS):
        yield Run(f"depth_{d:g}", "depth", f"d={d:g}", scaled(config, depth=d))
