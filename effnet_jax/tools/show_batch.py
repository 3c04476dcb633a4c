"""Pictures of what a recipe does to images: one PNG, rows of the same image over several epochs.

As in: python -m effnet_jax.tools.show_batch --config=configs/imagenet.py:b0 --out=DIR
           --config.data.data_dir=DIR [--images=N --epochs=N] [--recipes=all]

Images are what training gets before normalisation, of a run in stages in the one with the largest.
Mixup and cutmix, which the device does, are not shown. With --recipes=all there is a PNG for each
recipe of configs/imagenet.py, on --config's data.
"""

import pathlib
import re

from absl import flags
from ml_collections import config_flags

from configs import imagenet
from effnet_jax import cli
from effnet_jax.data import pipeline, sources
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError, check_choice
from effnet_jax.report import drawing, pictures
from effnet_jax.training import progressive

HERE = pathlib.Path(__file__).resolve().parent
RECIPES = ("b0,baseline", "b0", "b5,randaugment")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE or FILE:ARGUMENT; --config.key=value overrides."
)
OUT = flags.DEFINE_string("out", None, "Folder for the PNGs.")
IMAGES = flags.DEFINE_integer("images", 6, "Rows: images, spread over the training split.")
EPOCHS = flags.DEFINE_integer("epochs", 6, "Columns: epochs, after the image as it is stored.")
SHOWN = flags.DEFINE_string(
    "recipes", "", "all: the recipes of configs/imagenet.py. Else --config."
)


def main() -> None:
    if not OUT.value:
        raise UserError("--out is required, as in --out=pictures")
    for flag in (IMAGES, EPOCHS):
        if flag.value < 1:
            raise UserError(f"--{flag.name} must be 1 or more; got {flag.value}")
    check_choice("--recipes", SHOWN.value, ("", "all"))
    given = CONFIG.value
    if SHOWN.value:
        recipes = {name: imagenet.get_config(name) for name in RECIPES}
    else:
        path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        recipes = {" ".join(filter(None, (pathlib.Path(path).stem, argument))): given}
    source = pictures.Few(sources.open_source(given.data, given.data.train_split), IMAGES.value)
    originals = [decode_image(source[index]["image"]) for index in range(len(source))]
    out = pathlib.Path(OUT.value)
    for name, config in recipes.items():
        pipeline.check_config(config)
        config = progressive.largest(config)
        epochs = pictures.versions(source, config, EPOCHS.value)
        figure = pictures.draw(originals, epochs, source.classes, pictures.title(name, config))
        file = out / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', name)}.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            figure.savefig(file, dpi=drawing.DPI)
        except OSError as error:
            raise UserError(f"can't write to --out={out}: {error.strerror}") from None
        print(file)


if __name__ == "__main__":
    default = HERE.parents[1] / "configs" / "digits.py"
    cli.run_with_flags(main, default_config=str(default), computes=False)
