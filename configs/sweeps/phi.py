"""Compound scaling by phi (paper, figure 1 and table 2): `phi`, or `phi:b0,b1,1.5` or `phi:-1,0,1`.

A name is the published model, a number that phi by the config's own alpha, beta, gamma and
base_resolution.
"""

from effnet_jax.models import parse_variant
from effnet_jax.sweeps.plan import Run

MODELS = "b0,b1,b2,b3,b4,b5,b6,b7,8"


def get_sweep(config, argument):
    for name in (argument or MODELS).split(","):
        published = name[:1].isalpha()
        values = parse_variant(name if published else f"phi={name}")
        if not published:
            values["base"] = config.model.base
        overrides = {f"model.{key}": value for key, value in values.items()}
        label = name if published else f"phi={name}"
        yield Run(label, "compound", label, overrides)
