"""Evaluates a run, or weights from anywhere, on a data set.

Examples:
  effnet-jax eval --workdir=runs/b0 --data=imagenet_v2:topimages --csv=results/b0.csv
  effnet-jax eval --weights=lite0.safetensors --data_dir=photos --details=mistakes

Without --data, a run is evaluated on its own evaluation split, and a weight file on the folder of
images in --data_dir: DIR/val/CLASS/*.jpg or DIR/CLASS/*.jpg. Crop, resizing and normalisation are
those of the weights.

The last line of the output is a JSON object: top1, top5, loss, mean_per_class, count, step and
weights; for imagenet_c also mce. --details=DIR writes per_class.csv, confusion.csv, confusion.png
and mistakes.html; for imagenet_c each part has a folder in DIR. In a checkout, `python eval.py` is
the same command.
"""

import argparse
import json
import pathlib

from effnet_jax import flags
from effnet_jax.errors import UserError

PARSER = flags.Parser(__doc__, joins=True, buckets=("workdir", "weights", "csv"))
add = PARSER.group("weights")
add("--workdir", help="; its config is used")
add("--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
kinds = ": ema or raw, of the run; or a file, or hf://ORG/NAME"
add("--weights", default="ema", metavar="ema|raw|FILE", help=kinds)
flags.add_stated(add)
add = PARSER.group("data")
flags.add_data(add)
add = PARSER.group("output")
add("--csv", type=flags.path)
details = "write the accuracy of each class and the worst mistakes to this folder"
add("--details", type=pathlib.Path, metavar="DIR", help=details)


def main(args: argparse.Namespace) -> None:
    of_run = args.weights in ("ema", "raw")
    if of_run and args.workdir is None:
        raise UserError("give --workdir=DIR, the folder of a run, or --weights=FILE")
    of_file = (args.model, args.origin, args.classes)
    if args.workdir is not None and not of_run:
        raise UserError(
            f"--weights={args.weights} is neither ema nor raw, which are the weights of the run in "
            "--workdir; to evaluate a file or a repository, leave out --workdir"
        )
    if any(value is not None for value in (of_file if of_run else (args.workdir, args.step))):
        raise UserError(
            "--workdir and --step apply to runs; --model, --origin and --classes to weight files"
        )
    if not of_run and args.data is None and args.data_dir is None:
        raise UserError("give --data=SET, or --data_dir=FOLDER of images, to evaluate weights on")
    from effnet_jax import config, csv_rows, weights
    from effnet_jax.imagenet import variants
    from effnet_jax.report import details
    from effnet_jax.run import buckets, files
    from effnet_jax.run.writers import say

    if args.details and args.processes.is_first:
        details.check(args.details)

    run, source = config.load(args.workdir) if of_run else None, args.workdir or args.weights
    if args.step is not None:
        source = buckets.to_path(source) / "checkpoints" / str(args.step)
    found = weights.load(source, *of_file, weights=args.weights if of_run else "ema")
    starts = run and files.read_rows(buckets.to_path(args.workdir) / "runs.jsonl")
    trained = starts[-1].get("data", {}).get("train") if starts else None
    data = variants.choose_data(found, run, args.data, args.data_dir, trained)
    failed = []

    def show(name, records, outcomes):
        folder = args.details / name.rpartition("/")[2] if data.corruptions else args.details
        if outcomes is None:
            return say("no details: images have sets of labels")
        try:
            title = f"{name}, {source}"
            details.write(folder, title, found.classes, outcomes, records, data.data.exif)
        except OSError as error:
            failed.append(f"can't write to --details={folder}: {error.strerror}")

    options = {"processes": args.processes, "details": show if args.details else None}
    try:
        result = variants.evaluate_set(found, data, args.weights, args.csv, **options)
    except csv_rows.NotWritten as error:
        print(json.dumps(error.result), flush=True)
        raise
    if args.processes.is_first:
        print(json.dumps(result))
    if failed:
        raise UserError(failed[0])
