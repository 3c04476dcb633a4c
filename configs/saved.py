"""An experiment read back from JSON: a workdir's config.json, a sweep's run, what a search found.

Command:   python train.py --config=configs/saved.py:FILE.json --workdir=runs/again
Argument:  the file; or FILE.json,phi=1.5 for that model by the file's own base and coefficients.
           Its values are laid over configs/default.py, so a key it lacks has its default.
"""

import json
import pathlib

from effnet_jax import config as default
from effnet_jax.errors import UserError
from effnet_jax.models import parse_variant
from effnet_jax.models.efficientnet import VARIANTS


def get_config(argument: str = ""):
    path, _, model = argument.partition(",")
    try:
        values = json.loads(pathlib.Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"can't read a config from {path!r}: {error}") from None
    config = default.get_config()
    config.unlock()
    config.update(values)
    if model:
        chosen = parse_variant(model)
        if model in VARIANTS and chosen["base"] != config.model.base:
            raise UserError(f"{model} is no {config.model.base}, which {path} is of")
        config.model.update({k: chosen[k] for k in ("phi", "width", "depth", "resolution")})
    return config.lock()
