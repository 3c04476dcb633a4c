"""Writes weights of any origin as .safetensors, with architecture, preprocessing and classes.

As in: effnet-jax convert efficientnet-lite0.pth --to lite0.safetensors --classes=imagenet

SRC is a .safetensors, .npz, .pth or .h5 file, a TensorFlow checkpoint, the workdir or a checkpoint
of a run, or hf://ORG/NAME. --to is a file, or a folder for model.safetensors. Nothing in SRC is
run. An array that is missing, left over or of another shape is an error.

--to=hf://ORG/NAME publishes the weights with a config.json and a model card, which states what is
known of their run; --dry_run=DIR writes these files and uploads nothing. It needs --license.

--names=timm writes timm's names and order of axes, for its load_state_dict; hf:// has them by
default where timm has the network. --classes names the
outputs: imagenet (the first of 1001 outputs, for background, is dropped), imagenet_background,
imagenet21k, or a file of names. --origin is needed where names don't distinguish, as between timm's
own weights (timm) and TensorFlow's in its names (timm_tf). AdvProp's weights need
--normalization=inception. --json prints an object instead of lines.
"""

import argparse
import json
import pathlib
import tempfile

from effnet_jax import flags, weights
from effnet_jax.errors import UserError
from effnet_jax.trees import shapes_by_name
from effnet_jax.weights import hub

PARSER = flags.Parser(__doc__, computes=False)
PARSER.add_argument("source", metavar="SRC")
PARSER.add_argument("--to", required=True, metavar="DIR|FILE|hf://ORG/NAME")
PARSER.add_argument("--model", help="as in b0, lite2, v2-s; by default detected by its shapes")
PARSER.add_argument("--names", help="ours or timm")
PARSER.add_argument("--origin", help="tf, keras, timm, timm_tf, torchvision or lukemelas")
PARSER.add_argument("--classes", help="what the outputs are")
PARSER.add_argument("--weights", default="ema", help="ema, raw, or a state dict's key in a .pth")
PARSER.add_argument("--normalization", help="of pixels: imagenet, inception, 127 or 128")
PARSER.add_argument("--resolution", type=int, help="of images, in pixels")
PARSER.add_argument("--license", help="of the weights, for hf://ORG/NAME, such as apache-2.0")
PARSER.add_argument(
    "--dry_run", type=pathlib.Path, metavar="DIR", help="write hf://ORG/NAME here; upload nothing"
)
PARSER.add_argument("--overwrite", action="store_true", help="replace an existing file")
PARSER.add_argument("--json", action="store_true", help="JSON instead of lines")


def check(args: argparse.Namespace) -> tuple[pathlib.Path | None, str | None]:
    """The file to write, or the repository to publish; raises UserError for neither."""
    if args.to.startswith(hub.PREFIX):
        repository, revision = hub.parse(args.to)
        if revision:
            raise UserError(f"--to={args.to} names a revision; give hf://{repository}")
        if not args.license:
            raise UserError(f"--to={args.to} needs --license, as in --license=apache-2.0")
        if not args.dry_run:
            hub.library(args.to)
        return None, repository
    if args.license or args.dry_run:
        raise UserError("--license and --dry_run go with --to=hf://ORG/NAME")
    path = pathlib.Path(args.to).expanduser()
    if path.suffix == ".safetensors":
        return path, None
    if path.suffix and not path.is_dir():
        raise UserError(f"--to={path}: give a folder, or a file that ends in .safetensors")
    return path / "model.safetensors", None


def publish(args: argparse.Namespace, found: weights.Weights, repository: str) -> str:
    """Writes a repository's folder, and uploads it unless --dry_run names the folder."""
    from effnet_jax.weights import publish as lib

    about = (found, repository, args.license, args.source, args.weights, args.names)
    if args.dry_run:
        lib.write(args.dry_run.expanduser(), *about, overwrite=args.overwrite)
        return str(args.dry_run)
    with tempfile.TemporaryDirectory() as folder:
        lib.write(pathlib.Path(folder), *about)
        return lib.push(pathlib.Path(folder), repository, args.overwrite)


def main(args: argparse.Namespace) -> None:
    path, repository = check(args)
    keys = ("source", "model", "origin", "classes", "weights", "normalization", "resolution")
    found = weights.load(**{key: getattr(args, key) for key in keys})
    if repository:
        path = publish(args, found, repository)
    else:
        weights.save(path, found, args.names or "ours", args.overwrite)
    rows = {"file": str(path), "arrays": len(shapes_by_name(found.variables))}
    rows["origin"] = found.origin
    for key in ("base", "width", "depth", "padding", "batch_norm_epsilon"):
        rows[key] = found.config[key]
    rows |= {"classes": len(found.classes), **found.preprocess}
    if args.json:
        print(json.dumps(rows))
    else:
        print("\n".join(f"{key}: {value}" for key, value in rows.items()))
