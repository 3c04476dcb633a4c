"""Weights of any origin as .safetensors, with architecture, preprocessing and classes in the file.

As in: python -m effnet_jax.tools.convert efficientnet-lite0.pth --to lite0.safetensors
           --classes=imagenet

SRC is a .safetensors, .npz, .pth or .h5 file, a TensorFlow checkpoint, a workdir of a run or one of
its checkpoints, or hf://ORG/NAME. --to is a file, or a folder for model.safetensors. Nothing in SRC
is run, and an array that is missing, left over or of another shape stops it.

--names=timm writes timm's names and order of axes, for its load_state_dict. --classes names the
outputs: imagenet (the first of 1001 outputs, for background, is dropped), imagenet_background,
imagenet21k, or a file of names. --origin is needed where names alone don't tell, as between timm's
own weights (timm) and TensorFlow's in its names (timm_tf). AdvProp's weights need
--normalization=inception. --json prints an object instead of lines.
"""

import argparse
import json
import pathlib

from effnet_jax import cli
from effnet_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("--to", required=True, metavar="DIR|FILE")
    parser.add_argument("--model", help="as in b0, lite2, v2-s; else its shapes tell")
    parser.add_argument("--names", default="ours", help="ours or timm")
    parser.add_argument("--origin", help="tf, keras, timm, timm_tf, torchvision or lukemelas")
    parser.add_argument("--classes", help="what the outputs are")
    parser.add_argument("--weights", default="ema", help="ema or raw, where SRC has both")
    parser.add_argument("--normalization", help="of pixels: imagenet, inception, 127 or 128")
    parser.add_argument("--resolution", type=int, help="of images, in pixels")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")
    args = parser.parse_args()
    path = pathlib.Path(args.to).expanduser()
    if path.suffix != ".safetensors":
        if path.suffix and not path.is_dir():
            raise UserError(f"--to={args.to}: give a folder, or a file that ends in .safetensors")
        path /= "model.safetensors"

    from effnet_jax import weights
    from effnet_jax.trees import shapes_by_name

    found = weights.load(
        args.source,
        args.model,
        args.origin,
        args.classes,
        args.weights,
        args.normalization,
        args.resolution,
    )
    weights.save(path, found, args.names, args.overwrite)
    rows = {
        "file": str(path),
        "arrays": len(shapes_by_name(found.variables)),
        "origin": found.origin,
        "base": found.config.base,
        "width": found.config.width,
        "depth": found.config.depth,
        "padding": found.config.padding,
        "batch_norm_epsilon": found.config.batch_norm_epsilon,
        "classes": len(found.classes),
        **found.preprocess,
    }
    if args.json:
        print(json.dumps(rows))
    else:
        print("\n".join(f"{key}: {value}" for key, value in rows.items()))


if __name__ == "__main__":
    cli.run(main, computes=False)
