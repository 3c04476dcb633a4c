"""Evaluation sets, one file each: python eval.py --workdir=DIR --data=NAME, or --weights=FILE.

`get_config()`, or `get_config(argument)` for what follows the name and a colon, returns the keys of
`evaluation_set` below. Every set has the 1000 classes of ImageNet, named by WordNet ids, which have
to be among the network's. Resolution and preprocessing are the weights' own, but for what a set
says.

All are read by their TFDS name, prepared as ArrayRecord. Where one isn't there, the error gives the
command; --data_dir says where it is, if not where the run's own data was.
"""

import pathlib

from ml_collections import ConfigDict

from effnet_jax import config as default


def evaluation_set(name: str, split: str) -> ConfigDict:
    """Every key of an evaluation set, with the values that most sets have.

    Args:
      name: in TFDS.
      split: of it.
    """
    config = ConfigDict()
    config.data = default.get_config().data  # In place of the run's.
    config.data.name = name
    config.data.eval_split = split
    config.preprocess = ConfigDict()  # What differs from the run's config.preprocess.
    # Where the set is many, data.name/CORRUPTION_SEVERITY: error of the reference by corruption.
    config.corruptions = ConfigDict()
    config.severities = ()
    return config


def read_classes(name: str) -> tuple[str, ...]:
    """The classes, one a line, of a file beside this one."""
    return tuple((pathlib.Path(__file__).parent / name).read_text().split())
