"""Compound scaling by phi (paper, figure 1 and table 2): `phi`, or `phi:b0,b1,1.5` or `phi:-1,0,1`.

A name is a published model with the base network of the config. A number is a phi, with the alpha,
beta, gamma and base network of the config. The default is B0 to B7 and phi=8 for EfficientNet, and
phi 0 to 7 for other base networks.
"""

from effnet_jax.errors import UserError
from effnet_jax.models import parse_variant
from effnet_jax.sweeps.runs import Run

MODELS = "b0,b1,b2,b3,b4,b5,b6,b7,8"
NUMBERS = "0,1,2,3,4,5,6,7"


def get_sweep(config, argument):
    default = MODELS if config.model.base == "efficientnet" else NUMBERS
    for name in (argument or default).split(","):
        published = name[:1].isalpha()
        values = parse_variant(name if published else f"phi={name}")
        if published and values["base"] != config.model.base:
            raise UserError(
                f"{name} is not based on {config.model.base}; give numbers, as in phi:0,1,2"
            )
        kept = ["batch_norm_momentum"]
        if not published:
            kept += ["base", "base_resolution", "survival_probability"]
        values |= {key: config.model[key] for key in kept}
        overrides = {f"model.{key}": value for key, value in values.items()}
        label = name if published else f"phi={name}"
        yield Run(label, "compound", label, overrides)
