"""Exports a network to a file that runs without this package: .onnx, .stablehlo or .tflite.

Examples:
  effnet-jax export --weights=lite0.safetensors --to=lite0.onnx --check=photos
  effnet-jax export --weights=runs/mine --to=mine.onnx --int8 --calibrate=photos --preprocess

The network in the file takes normalised images, float32 [N, resolution, resolution, 3] in RGB, and
returns logits. With --preprocess it takes uint8 images and normalises them; with --softmax it
returns probabilities. An ONNX file has the preprocessing and the classes in its metadata. Files for
JAX (.stablehlo) and LiteRT (.tflite) have them in FILE.json next to the file. `effnet-jax predict`
runs all three.

DATA is an image, a pattern, a folder whose images are taken at any depth and whose subfolders name
their classes, or the workdir of a run. --int8 uses at most 128 of the images. --check compares the
file with its network on all images, and prints a line of JSON: images; same_top1, the fraction for
which both choose the same class; difference, the largest difference relative to the largest output;
and for images with a known class top1 and exported_top1.
"""

import argparse
import json
import pathlib
import time

from effnet_jax import flags
from effnet_jax.errors import UserError

CALIBRATION = 128  # Maximum number of images.
FEW = 16  # Images.


def any_or_count(text: str) -> int | None:
    """The type of --batch; returns None for "any"."""
    return None if text == "any" else flags.count(text)


PARSER = flags.Parser(__doc__)
flags.add_weights(PARSER.group("weights"), required=True)
add = PARSER.group("exported network")
add("--batch", type=any_or_count, default="any", metavar="N|any")
add("--resolution", type=flags.count, help=" (default: that of the weights)")
add("--preprocess", action="store_true", help="take uint8 images, and normalise them")
add("--softmax", action="store_true", help="return probabilities instead of logits")
add("--int8", action="store_true", help="quantise an ONNX file to 8 bits; needs --calibrate")
add("--calibrate", metavar="DATA", help="images similar to those that the network will see")
add = PARSER.group("output")
add("--to", required=True, type=pathlib.Path, help="; its suffix chooses the format")
add("--check", metavar="DATA", help="compare the file with its network on these images")
add("--overwrite", action="store_true")


def main(args: argparse.Namespace) -> None:
    if args.int8 != (args.calibrate is not None):
        raise UserError(
            "--int8 and --calibrate=DATA go together: DATA are images to calibrate with"
        )
    from effnet_jax import export, weights
    from effnet_jax.export import comparison
    from effnet_jax.run.writers import say

    path = args.to.expanduser()
    export.check(path, args.overwrite, args.int8)
    opened = {
        name: comparison.open_images(data, training=name == "calibrate")
        for name in ("calibrate", "check")
        if (data := getattr(args, name)) is not None
    }
    found = weights.load(
        args.weights, args.model, args.origin, args.classes, resolution=args.resolution
    )
    calibration = None
    if args.int8:
        source, size = opened["calibrate"], args.batch or comparison.BATCH
        chosen = comparison.choose(source, CALIBRATION, args.batch or 1)
        say(f"calibrating with {len(set(chosen))} of {len(source):,} images")
        if len(source) < FEW:
            say(f"fewer than {FEW} images may not show the range of every activation: see --check")
        batches = comparison.read_batches(source, found.preprocess, chosen, size)
        calibration = (pixels for pixels, _ in batches)
    start = time.perf_counter()
    options = {"pixels": args.preprocess, "softmax": args.softmax, "overwrite": args.overwrite}
    export.write(path, found, args.batch, calibration=calibration, **options)
    seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
    say(f"{path}: {size:.1f} MB, in {seconds:.1f} s")
    if args.check:
        result = comparison.compare(export.read(path), found, opened["check"])
        print(json.dumps(result))
