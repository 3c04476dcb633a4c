"""Evaluates a workdir: python eval.py --workdir=DIR [--data=SET] [--step=N] [--weights=ema|raw].

Without --data that is on the split that the run was evaluated on. SET is in configs/evaluation:
--data=imagenet_a, --data=imagenet_v2:topimages or --data=configs/evaluation/imagenet_a.py.
Its last line is a JSON object: top1, top5, loss, count, step, weights; of imagenet_c mce as well.
"""

import json

from absl import flags

from effnet_jax import cli
from effnet_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; its config is read from there.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; by default the newest.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw weights.")
DATA = flags.DEFINE_string("data", None, "NAME or NAME:ARGUMENT of configs/evaluation, or FILE.py.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data is now, if it has moved.")
CSV = flags.DEFINE_string("csv", None, "Add a row with result, run and machine to this file.")


cli.define_host_flags()


def main() -> None:
    if WORKDIR.value is None:
        raise UserError("--workdir=DIR is required: the folder that train.py wrote to")
    cli.join_hosts()
    from effnet_jax import hosts
    from effnet_jax.evaluation import evaluate_workdir

    result = evaluate_workdir(
        WORKDIR.value, STEP.value, WEIGHTS.value, DATA_DIR.value, CSV.value, DATA.value
    )
    if hosts.is_first():
        print(json.dumps(result))


if __name__ == "__main__":
    cli.run_with_flags(main)
