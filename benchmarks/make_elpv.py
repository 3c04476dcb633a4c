"""Lays out the solar cells of elpv-dataset as a folder of classes.

The package has 2,624 electroluminescence photographs, 300x300 and grey, each with the probability
that its cell is defective: 0, 1/3, 2/3 or 1. From 0.5 on a cell counts as defective. The first 524
of a permutation of the labels' lines, by NumPy's generator with seed 0, are the test images.
Writes DIR/train/CLASS/*.png and DIR/val/CLASS/*.png.
"""

import argparse
import pathlib
import shutil
from importlib import resources

import numpy as np

CLASSES = ("functional", "defective")
IMAGES, TEST = 2624, 524


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR", help="a new folder")
    folder = parser.parse_args().folder
    source = resources.files("elpv_dataset") / "data"
    lines = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    if len(lines) != IMAGES:
        raise SystemExit(f"{source / 'labels.csv'} has {len(lines)} lines instead of {IMAGES}")
    test = set(np.random.default_rng(0).permutation(IMAGES)[:TEST].tolist())
    for number, (name, probability, _) in enumerate(lines):
        split = "val" if number in test else "train"
        to = folder / split / CLASSES[float(probability) >= 0.5] / pathlib.Path(name).name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, to)


if __name__ == "__main__":
    main()
