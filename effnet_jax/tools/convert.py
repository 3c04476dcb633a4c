"""Converts weights of any origin to .safetensors, or publishes them on the Hugging Face Hub.

Examples:
  effnet-jax convert efficientnet-lite0.pth --to=lite0.safetensors --classes=imagenet
  effnet-jax convert runs/mine --to=hf://ORG/NAME --license=apache-2.0 --dry_run --out=hub

SRC is a .safetensors, .npz, .pth or .h5 file, a TensorFlow checkpoint, the workdir or a checkpoint
of a run, or hf://ORG/NAME. No code in SRC is executed. An array that is missing, left over or of
another shape is an error. The result contains the architecture, preprocessing and class names.

--to=hf://ORG/NAME uploads the weights with a config.json and a model card, which states what is
known about the training run. It needs --license.

--origin is needed where the names of the arrays are ambiguous: timm's own weights are timm, and
TensorFlow's under timm's names are timm_tf. Weights trained with AdvProp need
--normalization=inception.
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
add = PARSER.group("input")
add("source", metavar="SRC", help="weights to convert")
kinds = ": ema or raw, or the key of a state dict in a .pth file"
add("--weights", default="ema", metavar="ema|raw|KEY", help=kinds)
flags.add_stated(add)
kinds = "normalisation of the pixels: imagenet, inception, 127 or 128 (default: the origin's)"
add("--normalization", metavar="NAME", help=kinds)
add("--resolution", type=int, help=" (default: the model's own)")
add = PARSER.group("output")
folder = "; or a folder for model.safetensors, or a repository of the Hub"
add("--to", required=True, metavar="FILE|DIR|hf://ORG/NAME", help=folder)
names = "names of the arrays: ours or timm (default: ours; on the Hub timm if it has the model)"
add("--names", help=names)
add("--license", help="license of the weights, such as apache-2.0; for hf://ORG/NAME")
add("--dry_run", action="store_true", help=": the files of hf://ORG/NAME, in --out")
add("--out", type=pathlib.Path, help=" the files with --dry_run")
add("--overwrite", action="store_true")
add("--json", action="store_true", help=" instead of lines of text")


def check(args: argparse.Namespace) -> tuple[pathlib.Path | None, str | None]:
    """Returns the file to write or the repository to publish; raises UserError for a bad --to."""
    if args.to.startswith(hub.PREFIX):
        repository, revision = hub.parse(args.to)
        if revision:
            raise UserError(f"--to={args.to} names a revision; leave it out: hf://{repository}")
        if not args.license:
            raise UserError(f"--to={args.to} needs --license, as in --license=apache-2.0")
        if args.dry_run != bool(args.out):
            raise UserError("--dry_run and --out=DIR, the folder that it writes, go together")
        if not args.dry_run:
            hub.library(args.to)
        return None, repository
    if args.license or args.dry_run or args.out:
        raise UserError("--license, --dry_run and --out apply to --to=hf://ORG/NAME")
    path = pathlib.Path(args.to).expanduser()
    if path.suffix == ".safetensors":
        return path, None
    if path.suffix and not path.is_dir():
        raise UserError(f"--to={path} must be a folder, or a file that ends in .safetensors")
    return path / "model.safetensors", None


def publish(args: argparse.Namespace, found: weights.Weights, repository: str) -> str:
    """Writes the files of a repository and uploads them, unless --dry_run is set."""
    from effnet_jax.weights import publish as lib

    about = (found, repository, args.license, args.source, args.weights, args.names)
    if args.dry_run:
        lib.write(args.out.expanduser(), *about, overwrite=args.overwrite)
        return str(args.out)
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
