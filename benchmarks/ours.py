"""Our input pipeline, used through its public functions, in a separate process."""

import argparse
import pathlib
from collections.abc import Iterator

import numpy as np

from benchmarks import measure
from effnet_jax import __version__
from effnet_jax import config as default
from effnet_jax.data import folders, pipeline, turbojpeg


def batches(args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Training batches like those of a run."""
    config = default.get_config()
    config.batch_size = measure.BATCH_SIZE
    config.data.threads = args.threads
    config.augment.policy = args.policy
    photos = folders.list_classes(pathlib.Path(args.photos) / "train")
    files = [(path, label) for label, name in enumerate(photos) for path in photos[name]]
    # ImageNet's number of records, because finding the record of a position in the shuffled order
    # takes 43 us with 512 records and 6 us with this many.
    source = folders.FolderSource(tuple(photos), files * (1_281_167 // len(files)))
    stream = pipeline.train_batches(source, config, measure.RESOLUTION)
    for batch in stream.read_ahead(config.data):
        yield batch["image"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--whole_images", action="store_true", help="don't use libturbojpeg 3")
    flags = measure.parse_flags(parser)
    if flags.whole_images:
        turbojpeg.library = lambda: None
    crop_decode = turbojpeg.library() is not None
    measure.report(batches(flags), flags, f"effnet_jax {__version__}", crop_decode)
