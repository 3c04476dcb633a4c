"""Pictures of how a recipe changes images: one PNG, each row one image over several epochs.

As in: effnet-jax show_batch --config=configs/imagenet.py:b0 --config.data.data_dir=DIR --out=DIR

The images are those that training gets, before normalisation; for a run in stages, those of the
stage with the largest images. Mixup and cutmix, which run on the device, are not shown.
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
add = PARSER.add_argument
add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder for the PNG")
add("--images", type=flags.count, default=6, help="rows: images, spread over the training split")
add("--epochs", type=flags.count, default=6, help="columns: epochs, after the stored image")


def main(args: argparse.Namespace) -> None:
    config_lib.validate(args.config)
    config = progressive.largest(args.config)
    source = pictures.Few(sources.open_source(config.data, config.data.train_split), args.images)
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
