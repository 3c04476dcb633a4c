"""An experiment read back from JSON: the config.json of a workdir, or a run of a sweep.

Command:   python train.py --config=configs/saved.py:FILE.json --workdir=runs/again
Argument:  the file. Its values are laid over configs/default.py, so a key it lacks has its default.
"""

import json
import pathlib

from configs import default
from effnet_jax.errors import UserError


def get_config(path: str = ""):
    try:
        values = json.loads(pathlib.Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"can't read a config from {path!r}: {error}") from None
    config = default.get_config()
    config.unlock()
    config.update(values)
    return config.lock()
