"""Write the solar cells of elpv-dataset as a folder of classes.

The package has 2,624 grey electroluminescence photographs of 300x300 pixels, each with a
probability that the cell is defective: 0, 1/3, 2/3 or 1. A cell counts as defective from 0.5. The
test images are the first 524 of a permutation of the lines with labels, by NumPy's generator with
seed 0. Writes DIR/train/CLASS/*.png and DIR/val/CLASS/*.png.
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
