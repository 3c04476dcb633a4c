"""Writes weights of any origin as .safetensors, with architecture, preprocessing and classes.

As in: effnet-jax convert efficientnet-lite0.pth --to lite0.safetensors --classes=imagenet

SRC is a .safetensors, .npz, .pth or .h5 file, a TensorFlow checkpoint, the workdir or a checkpoint
of a run, or hf://ORG/NAME. --to is a file, or a folder for model.safetensors. Nothing in SRC is
run. An array that is missing, left over or of another shape is an error.

--names=timm writes timm's names and order of axes, for its load_state_dict. --classes names the
outputs: imagenet (the first of 1001 outputs, for background, is dropped), imagenet_background,
imagenet21k, or a file of names. --origin is needed where names don't distinguish, as between timm's
own weights (timm) and TensorFlow's in its names (timm_tf). AdvProp's weights need
--normalization=inception. --json prints an object instead of lines.
"""

import argparse
import json
import pathlib

from effnet_jax import flags, weights
from effnet_jax.errors import UserError
from effnet_jax.trees import shapes_by_name

PARSER = flags.Parser(__doc__, computes=False)
PARSER.add_argument("source", metavar="SRC")
PARSER.add_argument("--to", required=True, metavar="DIR|FILE")
PARSER.add_argument("--model", help="as in b0, lite2, v2-s; by default detected by its shapes")
PARSER.add_argument("--names", default="ours", help="ours or timm")
PARSER.add_argument("--origin", help="tf, keras, timm, timm_tf, torchvision or lukemelas")
PARSER.add_argument("--classes", help="what the outputs are")
PARSER.add_argument("--weights", default="ema", help="ema, raw, or a state dict's key in a .pth")
PARSER.add_argument("--normalization", help="of pixels: imagenet, inception, 127 or 128")
PARSER.add_argument("--resolution", type=int, help="of images, in pixels")
PARSER.add_argument("--overwrite", action="store_true", help="replace an existing file")
PARSER.add_argument("--json", action="store_true", help="JSON instead of lines")


def main(args: argparse.Namespace) -> None:
    path = pathlib.Path(args.to).expanduser()
    if path.suffix != ".safetensors":
        if path.suffix and not path.is_dir():
            raise UserError(f"--to={path}: give a folder, or a file that ends in .safetensors")
        path /= "model.safetensors"
    keys = ("source", "model", "origin", "classes", "weights", "normalization", "resolution")
    found = weights.load(**{key: getattr(args, key) for key in keys})
    weights.save(path, found, args.names, args.overwrite)
    rows = {"file": str(path), "arrays": len(shapes_by_name(found.variables))}
    rows["origin"] = found.origin
    for key in ("base", "width", "depth", "padding", "batch_norm_epsilon"):
        rows[key] = found.config[key]
    rows |= {"classes": len(found.classes), **found.preprocess}
    if args.json:
        print(json.dumps(rows))
    else:
        print("\n".join(f"{key}: {value}" for key, value in rows.items()))
