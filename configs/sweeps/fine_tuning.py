"""Ways of fine-tuning, for the weights in a folder: `fine_tuning:FOLDER`.

FOLDER has MODEL.safetensors for one or more models, with names such as b0 or lite2. All models are
fine-tuned. The first one by name is also trained in other ways: only its head for the first quarter
of the run (2202.10054), with frozen BatchNorm, as a classifier on frozen features, and from
scratch. The config must fine-tune, as configs/elpv.py does; all runs have its length.
"""

import pathlib

from effnet_jax import models
from effnet_jax.errors import UserError
from effnet_jax.sweeps.runs import Run

# The keys of config.model that the name of a model sets; regularisation is that of the config.
NETWORK = ("base", "base_resolution", "phi", "width", "depth", "resolution", "dropout")
METHODS = {  # The difference from training all parameters all the time.
    "head-first": lambda config: {"fine_tune.head_epochs": config.epochs / 4},
    "frozen-norms": lambda config: {"fine_tune.batch_norm": "frozen"},
    "frozen-features": lambda config: {
        "fine_tune.batch_norm": "frozen",
        "fine_tune.freeze": "stem..head",
    },
    "scratch": lambda config: {"init.weights": None},
}


def get_sweep(config, argument):
    paths = sorted(pathlib.Path(argument).expanduser().glob("*.safetensors")) if argument else []
    if not paths:
        raise UserError(
            "fine_tuning needs a folder with MODEL.safetensors, as in fine_tuning:runs/lite; "
            f"got {argument!r}"
        )
    if not config.epochs:
        raise UserError("fine_tuning needs a length in epochs, as in --config.epochs=4")
    for path in paths:
        yield Run(path.stem, "fine-tuned", path.stem, network(config, path))
    first = paths[0]
    for method, changes in METHODS.items():
        overrides = network(config, first) | changes(config)
        yield Run(f"{first.stem}_{method}", method, first.stem, overrides)


def network(config, path):
    """Returns the overrides that choose a model and its weights."""
    values = models.parse_variant(path.stem)
    overrides = {f"model.{key}": values[key] for key in NETWORK}
    return overrides | {"init.weights": str(path)}
