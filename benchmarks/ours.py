"""Our input pipeline, through its public functions, in a process of its own."""

import argparse
from collections.abc import Iterator

import numpy as np

from benchmarks import measure
from configs import default
from effnet_jax import __version__
from effnet_jax.data import pipeline, sources


def batches(args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Training batches as a run would get them."""
    config = default.get_config()
    config.data.update(source="folder", data_dir=args.photos, eval_split="val")
    config.data.update(threads=args.threads, prefetch_batches=2 * args.threads)
    config.augment.policy = args.policy
    source = sources.open_source(config.data, config.data.train_split)
    dataset = pipeline.train_dataset(
        source, config.preprocess, measure.RESOLUTION, measure.BATCH_SIZE, seed=0
    )
    for batch in pipeline.read_ahead(dataset, config.data):
        yield batch["image"]


if __name__ == "__main__":
    flags = measure.flags()
    measure.report(batches(flags), flags, f"effnet_jax {__version__}")
