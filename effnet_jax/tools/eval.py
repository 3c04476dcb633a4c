"""Evaluates a run, or any weights, on a data set.

As in: effnet-jax eval --workdir=DIR [--data=SET] [--step=N] [--weights=ema|raw]
       effnet-jax eval --weights=FILE --data=SET (or --data_dir=FOLDER of images)

Without --data, a run is evaluated on its own evaluation split. SET is in configs/evaluation:
--data=imagenet_a, --data=imagenet_v2:topimages or --data=configs/evaluation/imagenet_a.py. Crop,
resizing and normalisation are the weights' own; --model, --origin and --classes are as for convert,
for a FILE that doesn't state them.
The last line is a JSON object: top1, top5, loss, mean_per_class, count, step, weights; for
imagenet_c mce as well. --details=DIR writes per_class.csv, confusion.csv, confusion.png and
mistakes.html, for imagenet_c in a folder for each of its parts.
"""

import argparse
import json
import pathlib

from effnet_jax import flags
from effnet_jax.errors import UserError

PARSER = flags.Parser(__doc__, joins=True, buckets=("workdir", "weights", "csv"))
add = PARSER.add_argument
add("--workdir", metavar="DIR", help="workdir of the run; its config is read from there")
add("--step", type=int, help="of the checkpoint; by default the newest")
add("--weights", default="ema", help="ema or raw, of a run; or a file, or hf://ORG/NAME")
add("--data", metavar="SET", help="NAME or NAME:ARGUMENT of configs/evaluation, or FILE.py")
add("--data_dir", metavar="DIR", help="where the data is; or a folder of images")
add("--csv", type=flags.path, metavar="FILE", help="add a row with the result to this file")
add("--details", type=pathlib.Path, metavar="DIR", help="write accuracy by class and mistakes here")
for name in ("model", "origin", "classes"):
    add(f"--{name}", help="of a FILE that doesn't state it")


def main(args: argparse.Namespace) -> None:
    of_run = args.weights in ("ema", "raw")
    if of_run and args.workdir is None:
        raise UserError("give --workdir=DIR, the folder of a run, or --weights=FILE of weights")
    of_file = (args.model, args.origin, args.classes)
    if args.workdir is not None and not of_run:
        raise UserError(
            f"--weights={args.weights} is neither ema nor raw, of the run in --workdir, but a file "
            "or a repository of weights; leave one of the two out"
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
