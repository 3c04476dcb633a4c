"""The flags and the measurement that the processes of all pipelines share."""

import argparse
import itertools
import json
import time
from collections.abc import Iterable
from typing import Any

import psutil

RESOLUTION = 224
BATCH_SIZE = 128
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# AutoAugment v0 (arXiv 1805.09501, as in tensorflow/tpu models/official/efficientnet/
# autoaugment.py): pairs of operations, each with a probability and a level from 0 to 10.
AUTOAUGMENT = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)
FILL = 128  # The value of pixels that geometric operations leave empty.
# The argument of an operation for a level; other operations have no argument.
LEVELS = {
    "Rotate": lambda level: level / 10 * 30,  # Degrees.
    "ShearX": lambda level: level / 10 * 0.3,
    "ShearY": lambda level: level / 10 * 0.3,
    "TranslateY": lambda level: level / 10 * 250,  # Pixels.
    "Color": lambda level: level / 10 * 1.8 + 0.1,
    # Bits to keep, at least 1 because TensorFlow shifts uint8 by at most 7.
    "Posterize": lambda level: max(1, int(level / 10 * 4)),
    "Solarize": lambda level: int(level / 10 * 256) % 256,  # TensorFlow compares in uint8.
    "SolarizeAdd": lambda level: int(level / 10 * 110),
}
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateY")  # The argument is negated half of the time.


def parse_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the flags that all pipelines have to the parser, and parse the command line."""
    parser.add_argument("--photos", required=True, help="folder from make_photos.py")
    parser.add_argument("--policy", choices=("none", "autoaugment"), required=True)
    parser.add_argument("--threads", type=int, required=True, help="threads or worker processes")
    parser.add_argument("--warm_up", type=int, required=True, help="batches before those measured")
    parser.add_argument("--batches", type=int, required=True, help="batches to measure")
    return parser.parse_args()


def cpu_seconds() -> float:
    """User and system time of this process and of its workers."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def report(
    batches: Iterable[Any], args: argparse.Namespace, version: str, crop_decode: bool
) -> None:
    """Take batches, and print a line of JSON with the time that they took after the warm-up.

    Args:
      batches: an endless iterable of uint8 [BATCH_SIZE, RESOLUTION, RESOLUTION, 3].
      args: from `parse_flags`.
      version: name and version of the library that makes the batches.
      crop_decode: whether it decodes only the crop of a JPEG.
    """
    shape = (BATCH_SIZE, RESOLUTION, RESOLUTION, 3)
    batches = iter(batches)
    for batch in itertools.islice(batches, args.warm_up):
        if tuple(batch.shape) != shape or "uint8" not in str(batch.dtype):
            raise ValueError(f"a batch is {batch.dtype} {tuple(batch.shape)}, not uint8 {shape}")
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in itertools.islice(batches, args.batches):
        pass
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    images = args.batches * BATCH_SIZE
    about = {"version": version, "crop_decode": crop_decode}
    print(json.dumps({"images": images, "cpu_s": cpu, "wall_s": wall, **about}))
