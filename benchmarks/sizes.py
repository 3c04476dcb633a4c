"""Measure what storing smaller images gains: python -m benchmarks.sizes --photos=DIR.

The photographs of make_photos.py are stored at each --size of tools.prepare_imagenet and pass
through the training pipeline without AutoAugment. The sizes take turns for several rounds.
"""

import argparse
import pathlib
import statistics
import time

from effnet_jax import config as default
from effnet_jax import csv_rows
from effnet_jax.data import pipeline
from effnet_jax.data.folders import FolderSource
from effnet_jax.imagenet import shards
from effnet_jax.run import writers

BATCHES, WARM_UP = 8, 4  # Batches of 128 images at 224 pixels.


def stored(photos: pathlib.Path, size: str) -> pathlib.Path:
    """Store the photographs at a size, as prepare_imagenet does, next to the originals' folder."""
    folder = photos.with_name(f"{photos.name}_{size}")
    for path in photos.glob("train/*/*.jpg"):
        target = folder / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(shards.fit(path.read_bytes(), shards.Settings(size))[0])
    return folder


def rate(folder: pathlib.Path) -> float:
    """The images per CPU-second of the pipeline for a folder."""
    config = default.get_config()
    config.batch_size = 128
    config.data.threads = 2
    files = [(str(path), 0) for path in sorted(folder.rglob("*.jpg"))]
    source = FolderSource(("photograph",), files)
    ahead = pipeline.train_batches(source, config, 224).read_ahead(config.data)
    for _ in range(WARM_UP):
        next(ahead)
    start = time.process_time()
    for _ in range(BATCHES):
        next(ahead)
    return BATCHES * config.batch_size / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=pathlib.Path, default=pathlib.Path("results/data_sizes.csv"))
    args = parser.parse_args()

    folders = {size: stored(args.photos, size) for size in shards.SIZES}
    rates = {size: [] for size in shards.SIZES}
    for number in range(args.rounds):
        for size, folder in folders.items():
            rates[size].append(rate(folder))
        shown = ", ".join(f"{size} {found[-1]:.0f}" for size, found in rates.items())
        writers.say(f"{number + 1}/{args.rounds}: {shown} images per CPU-second")
    rows = []
    for size, found in rates.items():
        lengths = [path.stat().st_size for path in folders[size].rglob("*.jpg")]
        ratios = [one / whole for one, whole in zip(found, rates["original"], strict=True)]
        rows.append(
            {
                "size": size,
                "images": len(lengths),
                "mean_kb": round(statistics.fmean(lengths) / 1000, 1),
                "images_per_cpu_second": round(statistics.median(found)),
                "ratio_median": round(statistics.median(ratios), 2),
                "ratio_min": round(min(ratios), 2),
                "ratio_max": round(max(ratios), 2),
                "rounds": args.rounds,
                **csv_rows.describe_machine(),
            }
        )
        writers.say(f"{size}: {rows[-1]['mean_kb']} KB, {rows[-1]['ratio_median']:.2f} times")
    csv_rows.append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
