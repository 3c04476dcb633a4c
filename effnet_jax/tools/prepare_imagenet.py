"""Prepares ImageNet: python -m effnet_jax.tools.prepare_imagenet --from=DIR --data_dir=DIR.

--from is a directory with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as image-net.org
gives them out; or with train/WNID/*.JPEG and val/*.JPEG or val/WNID/*.JPEG; or a copy of
imagenet2012 by TFDS, in TFRecord or ArrayRecord. What is written, DIR/imagenet2012/5.1.0, is what
TFDS and configs/imagenet.py read, with the splits train, validation and minival. TensorFlow is not
needed. The same command goes on where it was stopped.

minival is held out of training to choose by: the first 25,022 images, in the order of the Inception
script that the reference's files were made with. Nobody published the list; this is that script's
rule. Training on the others is --config.data.train_split='train[25022:]'.
"""

import argparse
import pathlib
import shlex
import time

import rich.console
import rich.table

from effnet_jax import cli
from effnet_jax.data import turbojpeg
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import prepare, shards
from effnet_jax.imagenet.shards import Report, Shard
from effnet_jax.run.workers import available_cores


def percent(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and 100")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def by_split(made: list[tuple[Shard, Report]]) -> dict[str, list[tuple[Shard, Report]]]:
    """What was made for each split, `minival` among them."""
    splits = {
        split: [pair for pair in made if pair[0].split == split]
        for split in (imagenet.TRAIN, imagenet.VALIDATION)
    }
    train = splits[imagenet.TRAIN]
    return splits | {imagenet.MINIVAL: train[: imagenet.minival_shards(len(train))]}


def table(splits: dict[str, list[tuple[Shard, Report]]]) -> rich.table.Table:
    """A row for each split."""
    columns = ("split", "images", "classes", "bytes", "repaired", "dropped")
    shown = rich.table.Table(*columns, title="ImageNet")
    for split, pairs in splits.items():
        reports = [report for _, report in pairs]
        counts = (
            sum(report.images for report in reports),
            len({item.label for shard, _ in pairs for item in shard.items}),
            sum(report.bytes for report in reports),
            sum(len(report.repaired) for report in reports),
            sum(len(report.dropped) for report in reports),
        )
        shown.add_row(split, *(f"{count:,}" for count in counts))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=prepare.TOOL,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", required=True, type=pathlib.Path, metavar="DIR", dest="source")
    parser.add_argument("--data_dir", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument(
        "--size",
        choices=shards.SIZES,
        default="original",
        help="make images smaller, so that the shorter side has this many pixels; by default the "
        "original bytes are kept",
    )
    parser.add_argument(
        "--quality", type=percent, default=90, help="of the JPEGs that are made smaller (90)"
    )
    parser.add_argument(
        "--restart_markers",
        action="store_true",
        help="add restart markers, so that crops are decoded faster; pixels stay the same",
    )
    parser.add_argument(
        "--on_corrupt",
        choices=("stop", "drop"),
        default="stop",
        help="what to do about a damaged image: stop with an error, or leave it out (stop)",
    )
    parser.add_argument(
        "--subset", action="store_true", help="the input is a part of ImageNet; don't check counts"
    )
    parser.add_argument(
        "--processes", type=positive, default=len(available_cores()), help="by default one a core"
    )
    args = parser.parse_args()

    source, data_dir = args.source.expanduser(), args.data_dir.expanduser()
    settings = shards.Settings(args.size, args.quality, args.restart_markers)
    if args.restart_markers and turbojpeg.library() is None:
        raise UserError(
            "--restart_markers needs libturbojpeg 3: pip install turbojpeg, or leave the flag out"
        )
    start = time.perf_counter()
    try:
        drop = args.on_corrupt == "drop"
        made = prepare.prepare(source, data_dir, settings, drop, args.subset, args.processes)
    except KeyboardInterrupt:
        raise Interrupted("stopped by Ctrl-C; the same command goes on") from None
    console = rich.console.Console(soft_wrap=True, highlight=False)
    splits = by_split(made)
    console.print(table(splits))
    for shard, report in made:
        for name, found in report.repaired:
            console.print(f"repaired {shard.split} {name}: {found}", markup=False)
        for name, why in report.dropped:
            console.print(f"dropped {shard.split} {name}: {why}", markup=False)
    held = sum(report.images for _, report in splits[imagenet.MINIVAL])
    console.print(
        f"{prepare.places(data_dir)[0]} in {time.perf_counter() - start:,.0f} s. Train on it with\n"
        "  python train.py --config=configs/imagenet.py:b0 "
        f"--config.data.data_dir={shlex.quote(str(data_dir))} --workdir=runs/b0\n"
        "and, to choose by minival, with\n"
        f"  --config.data.train_split='train[{held}:]' --config.data.eval_split=minival",
        markup=False,
    )


if __name__ == "__main__":
    cli.run(main, computes=False)
