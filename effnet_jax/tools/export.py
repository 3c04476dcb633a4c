"""Exports a network as a file that runs without this program: .onnx, .stablehlo or .tflite.

As in: effnet-jax export --weights=lite0.safetensors --to=lite0.onnx

--weights, --model, --origin and --classes are as for predict, which also runs the file. The file
takes normalised images, float32 [N, resolution, resolution, 3] in RGB, and returns logits. With
--preprocess it takes uint8 and normalises by itself; --softmax returns probabilities. ONNX has
preprocessing and classes in its metadata; the others, .stablehlo for JAX and .tflite for LiteRT,
have them in FILE.json next to them.

--int8 --calibrate=DATA quantises an ONNX file, with up to 128 of the images. --check=DATA compares
the file with its network on all images, and prints a line of JSON: images; same_top1, the fraction
on which both choose one class; difference, the largest relative to the largest output; and top1 and
exported_top1 on images whose class is known. DATA is an image, a folder, whose images are taken at
any depth and whose folders name their classes, or a pattern; or the workdir of a run.
"""

import argparse
import json
import pathlib
import time

from effnet_jax import flags
from effnet_jax.errors import UserError

CALIBRATION = 128  # Images, at most.
FEW = 16  # Images.


def any_or_count(text: str) -> int | None:
    """The type of --batch; None for any."""
    return None if text == "any" else flags.count(text)


PARSER = flags.Parser(__doc__)
add = PARSER.add_argument
add("--weights", required=True, metavar="FILE|WORKDIR")
for name in ("model", "origin", "classes"):
    add(f"--{name}", help="of weights that don't state it; see convert")
add("--to", required=True, type=pathlib.Path, metavar="FILE", help="its ending chooses the format")
add("--batch", type=any_or_count, default="any", metavar="N|any", help="images that a call takes")
add("--resolution", type=flags.count, help="of images, in pixels; by default the weights' own")
add("--preprocess", action="store_true", help="take uint8, and normalise in the file")
add("--softmax", action="store_true", help="return probabilities")
add("--int8", action="store_true", help="quantise to 8 bits; needs --calibrate")
add("--calibrate", metavar="DATA", help="images that are like those to come")
add("--check", metavar="DATA", help="compare the file with its network on these images")
add("--overwrite", action="store_true", help="replace an existing file")


def main(args: argparse.Namespace) -> None:
    if args.int8 != (args.calibrate is not None):
        raise UserError("--int8 and --calibrate=DATA go together: DATA are images to quantise with")
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
