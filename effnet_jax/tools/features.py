"""Writes the features that a network computes for the images of a data set to a file.

Examples:
  effnet-jax features --weights=lite0.safetensors --data_dir=DIR --split=train --out=train.npz
  effnet-jax features --weights=runs/mine --data=imagenet_v2 --layer=stage5 --out=v2.npz

Crop, resizing and normalisation are those of the weights; nothing is augmented. The default layer,
pre_logits, is the average over positions before the classifier. Other layers are averaged over
positions too. FILE.npz has the features, float32 [images, size], with labels, classes and files,
and the names of the data, the weights and the layer. effnet_jax.probe.load reads it.
"""

import argparse
import pathlib
import time

from effnet_jax import flags
from effnet_jax.errors import UserError
from effnet_jax.tools import track

PARSER = flags.Parser(__doc__)


def add_layer(add) -> None:
    """Adds --layer, which `read` takes."""
    add("--layer", default="pre_logits", help=": pre_logits, stem, stage1, stage2 ... or head")


add = PARSER.group("input")
flags.add_weights(add, required=True)
flags.add_data(add)
add("--split", help="split of the data (default: the one that eval takes)")
add = PARSER.group("output")
add_layer(add)
add("--out", required=True, type=pathlib.Path, metavar="FILE.npz", help=": a new file")


def load(args: argparse.Namespace):
    """Returns the weights, and a config with the data set and its preprocessing."""
    from effnet_jax import weights
    from effnet_jax.imagenet import variants

    if args.data is None and args.data_dir is None:
        raise UserError("give --data=SET, or --data_dir=FOLDER of images")
    found = weights.load(args.weights, args.model, args.origin, args.classes)
    config = variants.choose_data(found, None, args.data, args.data_dir)
    if config.corruptions:
        raise UserError(
            f"--data={args.data} has {len(config.corruptions)} parts; choose a set that has one"
        )
    return found, config


def read(args: argparse.Namespace, found, config, split: str):
    """Computes the features of the images in a split."""
    from effnet_jax import probe
    from effnet_jax.data import sources
    from effnet_jax.imagenet import variants
    from effnet_jax.run.writers import say

    source = variants.open_source(config.data, split)
    say(f"{sources.name_split(split)}: {source.summary()}")
    names = {"weights": args.weights, "data": f"{config.data.name}/{split}".removesuffix("/.")}
    names["identity"] = sources.identity(source)
    start = time.perf_counter()

    def shown(batches, count):
        return track(batches, count, "features")

    features = probe.extract(found.variables, config, source, args.layer, shown, **names)
    seconds = time.perf_counter() - start
    shape = "x".join(map(str, features.features.shape))
    say(f"features {shape} of {args.layer} in {seconds:.1f} s")
    return features


def main(args: argparse.Namespace) -> None:
    if args.out.suffix != ".npz":
        raise UserError(f"--out={args.out} must end in .npz")
    if args.out.exists():
        raise UserError(f"--out={args.out} already exists; choose another file")
    found, config = load(args)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.touch(exist_ok=False)
        args.out.unlink()
        features = read(args, found, config, args.split or config.data.eval_split)
        features.save(args.out)
    except OSError as error:
        raise UserError(f"can't write to --out={args.out}: {error.strerror}") from None
    print(args.out)
