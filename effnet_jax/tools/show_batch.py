"""Pictures of how a recipe changes images: one PNG, each row one image over several epochs.

As in: python -m effnet_jax.tools.show_batch --config=configs/imagenet.py:b0 --out=DIR
           --config.data.data_dir=DIR [--images=N --epochs=N]

The images are those that training gets, before normalisation; for a run in stages, those of the
stage with the largest images. Mixup and cutmix, which run on the device, are not shown.
"""

import pathlib
import re

from absl import flags
from ml_collections import config_flags

from effnet_jax import cli
from effnet_jax import config as config_lib
from effnet_jax.data import sources
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError
from effnet_jax.report import drawing, pictures
from effnet_jax.training import progressive

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE or FILE:ARGUMENT; --config.key=value overrides."
)
OUT = flags.DEFINE_string("out", None, "Folder for the PNG.")
IMAGES = flags.DEFINE_integer("images", 6, "Rows: images, spread over the training split.")
EPOCHS = flags.DEFINE_integer("epochs", 6, "Columns: epochs, after the image as it is stored.")


def main() -> None:
    if not OUT.value:
        raise UserError("--out is required, as in --out=pictures")
    for flag in (IMAGES, EPOCHS):
        if flag.value < 1:
            raise UserError(f"--{flag.name} must be 1 or more; got {flag.value}")
    config_lib.validate(CONFIG.value)
    config = progressive.largest(CONFIG.value)
    source = pictures.Few(sources.open_source(config.data, config.data.train_split), IMAGES.value)
    originals = [decode_image(source[index]["image"]) for index in range(len(source))]
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = " ".join(filter(None, (pathlib.Path(path).stem, argument)))
    epochs = pictures.versions(source, config, EPOCHS.value)
    figure = pictures.draw(originals, epochs, source.classes, pictures.title(name, config))
    file = pathlib.Path(OUT.value) / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', name)}.png"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=drawing.DPI)
    except OSError as error:
        raise UserError(f"can't write to --out={file.parent}: {error.strerror}") from None
    print(file)


if __name__ == "__main__":
    default = pathlib.Path(__file__).resolve().parents[2] / "configs" / "digits.py"
    cli.run_with_flags(main, default_config=str(default), computes=False)
