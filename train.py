"""The command `effnet-jax train`, in a checkout: python train.py --config=NAME --workdir=DIR."""

from effnet_jax import cli
from effnet_jax.tools.train import PARSER, main

if __name__ == "__main__":
    cli.run(main, PARSER)
