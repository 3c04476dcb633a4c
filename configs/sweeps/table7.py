"""The models of table 7 and of the class activation maps: the base, d=4, w=2, r=2, and compound."""

from effnet_jax.sweeps.runs import Run, scaled


def get_sweep(config, argument):
    yield Run("base", "baseline", "d=1, w=1, r=1", scaled(config))
    yield Run("depth_4", "depth", "d=4", scaled(config, depth=4))
    yield Run("width_2", "width", "w=2", scaled(config, width=2))
    yield Run("resolution_2", "resolution", "r=2", scaled(config, resolution=2))
    yield Run("compound", "compound", "d=1.4, w=1.2, r=1.3", scaled(config, 1.2, 1.4, 1.3))
