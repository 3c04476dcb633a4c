"""Draws how a recipe changes training images.

Examples:
  effnet-jax show_batch --config=digits --out=runs/pictures
  effnet-jax show_batch --config=imagenet:b5,randaugment --config.data.data_dir=DIR --out=pictures

Writes one PNG, in which each row is an image over several epochs. The images are those that
training gets, before normalisation. For progressive learning they are
those of the stage with the largest images. Mixup and CutMix run on the device, and are not shown.
"""

import argparse
import pathlib
import re

from effnet_jax import config as config_lib
from effnet_jax import flags
from effnet_jax.data import sources
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError
from effnet_jax.report import drawing, pictures
from effnet_jax.training import progressive

PARSER = flags.Parser(__doc__, config="digits", computes=False)
add = PARSER.group("output")
add("--out", required=True, type=pathlib.Path, help=": a folder for the PNG")
add("--num_images", type=flags.count, default=6, help=", each a row")
epochs = "number of epochs, each a column after the original image"
add("--epochs", type=flags.count, default=6, metavar="N", help=epochs)


def main(args: argparse.Namespace) -> None:
    config_lib.validate(args.config)
    config = progressive.largest(args.config)
    source = sources.open_source(config.data, config.data.train_split)
    source = pictures.Few(source, args.num_images)
    encoded = (source[index]["image"] for index in range(len(source)))
    originals = [decode_image(image, config.data.exif) for image in encoded]
    path, _, argument = args.experiment.partition(":")
    name = " ".join(filter(None, (pathlib.Path(path).stem, argument)))
    epochs = pictures.versions(source, config, args.epochs)
    figure = pictures.draw(originals, epochs, source.classes, pictures.title(name, config))
    file = args.out / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', name)}.png"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=drawing.DPI)
    except OSError as error:
        raise UserError(f"can't write to --out={args.out}: {error.strerror}") from None
    print(file)
