"""Width alone (paper, figure 3 left): `width`, or `width:1,1.4,2` for other multiples."""

from effnet_jax.sweeps.runs import Run, numbers, scaled

POINTS = (1.0, 1.4, 1.8, 2.6, 3.8, 5.0)


def get_sweep(config, argument):
    for w in numbers(argument, POINTS):
        yield Run(f"width_{w:g}", "width", f"w={w:g}", scaled(config, width=w))
