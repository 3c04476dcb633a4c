"""Resolution alone (paper, figure 3 right): `resolution`, or `resolution:1,1.5,2` for multiples."""

from effnet_jax.sweeps.runs import Run, numbers, scaled

POINTS = (1.0, 1.3, 1.5, 1.7, 1.9, 2.2, 2.5)


def get_sweep(config, argument):
    for r in numbers(argument, POINTS):
        yield Run(f"resolution_{r:g}", "resolution", f"r={r:g}", scaled(config, resolution=r))
