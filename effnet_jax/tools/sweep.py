"""Runs a sweep: python -m effnet_jax.tools.sweep --config=FILE:ARG --sweep=NAME:ARG --workdir=DIR.

As in: python -m effnet_jax.tools.sweep --config=configs/cluttered_digits.py \
           --sweep=seeds:3,methods:2,4 --workdir=runs/methods

First it prints the table of runs, and with --dry_run nothing else. The same command again goes on:
finished runs are kept, begun ones continue from their checkpoint, failed ones are tried again.
"""

from absl import flags

from effnet_jax import cli
from effnet_jax.errors import UserError
from effnet_jax.tools import launching

SWEEP = flags.DEFINE_string("sweep", None, "NAME or NAME:ARGUMENT of configs/sweeps, or FILE.py.")


def main() -> None:
    if not SWEEP.value:
        raise UserError("--sweep is required, as in --sweep=methods; see --help")
    launching.launch(SWEEP.value)


if __name__ == "__main__":
    cli.run_with_flags(main, default_config=launching.DEFAULT_CONFIG, computes=False)
