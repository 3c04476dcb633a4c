"""Writes the features of a data set's images, as a network has them, to a file.

As in: effnet-jax features --weights=lite0.safetensors --data_dir=DIR --split=train --out=train.npz

--weights is a file of weights, the workdir of a run, or hf://ORG/NAME. --data and --data_dir are as
for eval: a set of configs/evaluation, or a folder of images, DIR/SPLIT/CLASS/*.jpg or DIR/CLASS.
Crop, resizing and normalisation are the weights' own, and nothing is augmented. --layer is
pre_logits, the average over positions before the classifier; or stem, stage1, stage2 and so on, or
head, which are averaged over positions too. The .npz has features float32 [images, size], labels,
classes and files, and texts that say what they are of; effnet_jax.probe.load reads it.
"""

import argparse
import pathlib
import time

from effnet_jax import flags
from effnet_jax.errors import UserError
from effnet_jax.tools import track

PARSER = flags.Parser(__doc__)
add = PARSER.add_argument


def add_source(add) -> None:
    """The flags that `read` takes."""
    add("--data", metavar="SET", help="NAME or NAME:ARGUMENT of configs/evaluation, or FILE.py")
    add("--data_dir", metavar="DIR", help="where the data is; or a folder of images")
    add("--layer", default="pre_logits", help="pre_logits, stem, stage1, stage2 ... or head")
    for name in ("model", "origin", "classes"):
        add(f"--{name}", help="of weights that don't state it; see convert")


add("--weights", required=True, metavar="FILE|WORKDIR")
add("--split", help="of the data; by default the one that eval takes")
add("--out", required=True, type=pathlib.Path, metavar="FILE.npz")
add_source(add)


def load(args: argparse.Namespace):
    """The weights, and the whole config with the data that they are to see."""
    from effnet_jax import weights
    from effnet_jax.imagenet import variants

    if args.data is None and args.data_dir is None:
        raise UserError("give --data=SET, or --data_dir=FOLDER of images")
    found = weights.load(args.weights, args.model, args.origin, args.classes)
    config = variants.choose_data(found, None, args.data, args.data_dir)
    if config.corruptions:
        raise UserError(f"--data={args.data} is {len(config.corruptions)} sets; give a single one")
    return found, config


def read(args: argparse.Namespace, found, config, split: str):
    """The features of a split's images."""
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
        raise UserError(f"--out={args.out} is there already; choose another file")
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
