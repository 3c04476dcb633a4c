"""Trains a model: python train.py --config=configs/digits.py --workdir=DIR [--config.a.b=c ...].

The same command with the same workdir goes on where it stopped. Exit codes: 0 done, 2 bad input,
3 the loss was not finite, 75 interrupted and saved, 130 Ctrl-C with nothing to save. On many hosts,
the same command on each: see README.md.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from effnet_jax import cli

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment, FILE or FILE:ARGUMENT (default: configs/digits.py); --config.key=value overrides.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything goes; by default runs/NAME of the config."
)


cli.define_process_flags()


def main(processes) -> None:
    from effnet_jax.report import finish
    from effnet_jax.training.supervisor import train_and_evaluate

    name = pathlib.Path(
        config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    ).stem
    workdir = WORKDIR.value or f"runs/{name}"
    state, scores = train_and_evaluate(CONFIG.value, workdir, processes=processes)
    if processes.is_first:
        finish.show(workdir, int(state.step), scores)


if __name__ == "__main__":
    cli.run_with_flags(main, default_config=str(HERE / "configs" / "digits.py"), joins=True)
