"""Evaluates a run: python eval.py --workdir=DIR [--data=SET] [--step=N] [--weights=ema|raw].

Or weights from elsewhere: python eval.py --weights=FILE --data=SET, or --data_dir=FOLDER of images.

Without --data a run is evaluated on the split that it was evaluated on. SET is in
configs/evaluation: --data=imagenet_a, --data=imagenet_v2:topimages or
--data=configs/evaluation/imagenet_a.py. Crop, resizing and normalisation are the weights' own;
--model, --origin and --classes are as for tools.convert, where FILE doesn't say.
Its last line is a JSON object: top1, top5, loss, count, step, weights; of imagenet_c mce as well.
"""

import json

from absl import flags

from effnet_jax import cli
from effnet_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; its config is read from there.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; by default the newest.")
WEIGHTS = flags.DEFINE_string("weights", "ema", "A run's, ema or raw; or a file, or hf://ORG/NAME.")
DATA = flags.DEFINE_string("data", None, "NAME or NAME:ARGUMENT of configs/evaluation, or FILE.py.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is; a folder of images.")
CSV = flags.DEFINE_string("csv", None, "Add a row with result, run and machine to this file.")
DESCRIBED = [
    flags.DEFINE_string(name, None, f"{name.title()} of a FILE that doesn't say.")
    for name in ("model", "origin", "classes")
]


cli.define_process_flags()


def main(processes) -> None:
    of_run = WEIGHTS.value in ("ema", "raw")
    described = {flag.name: flag.value for flag in DESCRIBED}
    if of_run and WORKDIR.value is None:
        raise UserError(
            "give --workdir=DIR, the folder that train.py wrote to, or --weights=FILE of weights"
        )
    others = (WORKDIR.value, STEP.value) if not of_run else described.values()
    if any(value is not None for value in others):
        raise UserError("--workdir and --step are of runs; --model, --origin, --classes of files")
    if not of_run and DATA.value is None and DATA_DIR.value is None:
        raise UserError("give --data=SET, or --data_dir=FOLDER of images, to evaluate weights on")
    from effnet_jax import evaluation

    if of_run:
        subject = evaluation.checkpoint_of(WORKDIR.value, STEP.value, WEIGHTS.value)
    else:
        subject = evaluation.weights_of(WEIGHTS.value, DATA_DIR.value, **described)
    result = evaluation.evaluate(subject, DATA_DIR.value, CSV.value, DATA.value, processes)
    if processes.is_first:
        print(json.dumps(result))


if __name__ == "__main__":
    cli.run_with_flags(main, joins=True)
