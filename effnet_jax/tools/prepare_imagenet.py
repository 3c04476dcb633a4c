"""Prepares ImageNet for training, from its tar files, its images or a copy made by TFDS.

Examples:
  effnet-jax prepare_imagenet --from=downloads --data_dir=data
  effnet-jax prepare_imagenet --from=downloads --data_dir=data --minival=val_split20.txt --size=256

--from is a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org; or
with train/WNID/*.JPEG and val/*.JPEG or val/WNID/*.JPEG (also validation/); or at most 3 levels
above these; or a copy of imagenet2012 made by TFDS, in ArrayRecord. The result,
DIR/imagenet2012/5.1.0, is what TFDS and configs/imagenet.py read, with the splits train, validation
and minival. TensorFlow is not needed. After an interruption, the same command continues.

minival is held out of training, so that checkpoints can be chosen by it. --minival=FILE names its
images, one per line; the reference's 25,022 are in val_split20.txt, at
https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet/eval_data/val_split20.txt. Without
--minival they are the first 25,022 in the order of the Inception script that wrote the reference's
files, which are other images. --config.data.train_split='train[25022:]' trains on the others.
"""

import argparse
import pathlib
import shlex
import time

import rich.table

from effnet_jax import flags
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import prepare, shards
from effnet_jax.run.workers import available_cores
from effnet_jax.tools import show

PARSER = flags.Parser(__doc__, computes=False)
add = PARSER.group("input and output")
originals = "folder with the original files"
add("--from", required=True, type=pathlib.Path, metavar="DIR", dest="source", help=originals)
add("--data_dir", required=True, type=pathlib.Path, help="; DIR/imagenet2012 is written")
add = PARSER.group("images")
smaller = "shrink images to this many pixels on the shorter side"
add("--size", choices=shards.SIZES, default="original", help=smaller)
add("--quality", type=int, default=90, metavar="1-100", help="JPEG quality of shrunk images")
damaged = "stop at a damaged image, or drop it"
add("--on_corrupt", choices=("stop", "drop"), default="stop", help=damaged)
add("--subset", action="store_true", help="accept an incomplete ImageNet: don't check the counts")
listed = "file with the names of the training images in minival (default: the first 25,022)"
add("--minival", type=pathlib.Path, metavar="FILE", help=listed)
add = PARSER.group("speed")
workers = "number of worker processes (default: one per core)"
add("--processes", type=flags.count, dest="workers", metavar="N", help=workers)


def table(splits: dict[str, prepare.Made]) -> rich.table.Table:
    """A table with a row for each split."""
    columns = ("split", "images", "classes", "bytes", "repaired", "dropped")
    shown = rich.table.Table(*columns, title="ImageNet")
    for split, pairs in splits.items():
        counts = [(r.images, r.bytes, len(r.repaired), len(r.dropped)) for _, r in pairs]
        images, *others = map(sum, zip(*counts, strict=True))
        classes = len({item.label for shard, _ in pairs for item in shard.items})
        shown.add_row(split, *(f"{total:,}" for total in (images, classes, *others)))
    return shown


def main(args: argparse.Namespace) -> None:
    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality={args.quality} must be between 1 and 100")
    source, data_dir, start = args.source.expanduser(), args.data_dir.expanduser(), time.time()
    workers, minival = args.workers or len(available_cores()), args.minival
    minival = minival and minival.expanduser()
    settings = shards.Settings(args.size, args.quality, args.on_corrupt == "drop")
    try:
        made = prepare.prepare(source, data_dir, settings, args.subset, workers, minival)
    except KeyboardInterrupt:
        raise Interrupted("stopped by Ctrl-C; the same command continues") from None
    except OSError as error:
        raise UserError(f"{error.filename or data_dir}: {error.strerror}") from None
    splits = prepare.by_split(made)
    show(table(splits))
    for split, name, done, why in prepare.odd_images(made):
        print(f"{done} {split} {name}: {why}")
    held = sum(report.images for _, report in splits[imagenet.MINIVAL])
    print(
        f"{prepare.places(data_dir)[0]} in {time.time() - start:,.0f} s. Train on it with\n"
        "  python train.py --config=configs/imagenet.py:b0 "
        f"--config.data.data_dir={shlex.quote(str(data_dir))} --workdir=runs/b0\n"
        "and, to choose by minival, with\n"
        f"  --config.data.train_split='train[{held}:]' --config.data.eval_split=minival"
    )
