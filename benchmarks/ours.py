"""Our input pipeline, through its public functions, in a process of its own."""

import argparse
import pathlib
from collections.abc import Iterator

import numpy as np

from benchmarks import measure
from effnet_jax import __version__
from effnet_jax import config as default
from effnet_jax.data import pipeline, sources, turbojpeg
from effnet_jax.imagenet import shards

MARKED = "train_with_restart_markers"


def mark(folder: pathlib.Path) -> None:
    """Stores the photographs as prepare_imagenet --restart_markers does, beside the originals."""
    settings = shards.Settings(restart_markers=True)
    for path in (folder / "train").glob("*/*.jpg"):
        target = folder / MARKED / path.relative_to(folder / "train")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(shards.fit(path.read_bytes(), settings)[0])


def batches(args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Training batches as a run would get them."""
    config = default.get_config()
    config.batch_size = measure.BATCH_SIZE
    config.data.threads = args.threads
    config.augment.policy = args.policy
    photos = sources.list_classes(
        pathlib.Path(args.photos) / (MARKED if args.restart_markers else "train")
    )
    files = [(path, label) for label, name in enumerate(photos) for path in photos[name]]
    # As many records as ImageNet has: to find a position's record in the shuffled order takes 43 us
    # of 512 records, and 6 of so many.
    source = sources.FolderSource(tuple(photos), files * (1_281_167 // len(files)))
    stream = pipeline.train_batches(source, config, measure.RESOLUTION)
    for batch in stream.read_ahead(config.data):
        yield batch["image"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--whole_images", action="store_true", help="as without libturbojpeg 3")
    parser.add_argument("--restart_markers", action="store_true", help="the photos of `mark`")
    flags = measure.parse_flags(parser)
    if flags.whole_images:
        turbojpeg.library = lambda: None
    crop_decode = turbojpeg.library() is not None
    measure.report(batches(flags), flags, f"effnet_jax {__version__}", crop_decode)
