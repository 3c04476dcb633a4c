"""Trains on your own data source: the images that a CSV file lists.

Usage: python examples/data_source.py images.csv

The CSV file has the header PATH,CLASS. A `Source` gives random access to encoded images. The
pipeline decodes, crops and augments them in threads, in an order that depends only on seed and
step. To use your source in train.py and eval.py, make it a choice of `config.data.source`, as
docs/contributing.md shows.
"""

import csv
import itertools
import pathlib
import sys

import jax
import numpy as np
import optax
from training_loop import fit

import effnet_jax
from effnet_jax import config as config_lib
from effnet_jax.data.pipeline import train_batches
from effnet_jax.data.preprocess import normalize
from effnet_jax.data.sources import Source


class CsvSource(Source):
    """The images of a CSV file with the columns PATH and CLASS; paths are relative to the file."""

    def __init__(self, path: str):
        with open(path, newline="") as file:
            rows = [(row["PATH"], row["CLASS"]) for row in csv.DictReader(file)]
        classes = tuple(sorted({name for _, name in rows}))
        records = [(image, classes.index(name)) for image, name in rows]
        super().__init__(classes, records)
        self._folder = pathlib.Path(path).parent

    def __getitem__(self, index: int) -> dict:
        image, label = self._records[index]
        return {"image": (self._folder / image).read_bytes(), "label": label}

    def describe(self, index: int) -> str:
        return self._records[index][0]


def main(path: str, model: str = "b0", steps: int = 100, batch: int = 32) -> list[float]:
    """Trains on the images of a CSV file and returns the loss of each step."""
    source = CsvSource(path)
    config = config_lib.get_config(model)
    config.batch_size = batch
    settings = {"batch_norm_momentum": 0.9, "stem_stride": 2}
    network = effnet_jax.create_model(model, num_classes=len(source.classes), **settings)
    made = train_batches(source, config, network.architecture.resolution)
    mean, std = config.preprocess.mean, config.preprocess.std

    def batches():
        for each in itertools.islice(made.read_ahead(config.data), steps):
            yield normalize(each["image"], mean, std), np.asarray(each["label"])

    variables = jax.jit(network.init_variables)(jax.random.key(0))
    _, losses = fit(network, variables, batches(), optax.adamw(1e-3))
    print(f"{source.summary()}; loss {losses[0]:.2f} to {losses[-1]:.2f}")
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
