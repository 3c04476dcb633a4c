"""Runs another sweep once for each learning rate: `rates:0.2,0.4,0.8,methods:2,4`.

The sweep `tuned` reads its results. The config should be evaluated on held-out training images:
--config.data.train_split="train[:90%]" --config.data.eval_split="train[90%:]".
"""

import re

from effnet_jax.errors import UserError
from effnet_jax.sweeps.runs import expand, numbers


def get_sweep(config, argument):
    rates, inner = re.fullmatch(r"((?:[\d.e+-]+,)*)(.*)", argument).groups()
    if not (rates and inner):
        raise UserError(
            f"rates needs learning rates and a sweep, as in rates:0.2,0.4,methods; got {argument!r}"
        )
    key = f"optimizer.{config.optimizer.name}.learning_rate"
    for rate in numbers(rates, ()):
        for run in expand(config, inner):
            overrides = {**run.overrides, key: rate}
            name, label = f"{run.name}_lr{rate:g}", f"{run.label}, lr={rate:g}"
            yield run._replace(name=name, label=label, overrides=overrides)
