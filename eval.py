"""The command `effnet-jax eval`, in a checkout: python eval.py --workdir=DIR, or --weights=FILE."""

from effnet_jax import cli
from effnet_jax.tools.eval import PARSER, main

if __name__ == "__main__":
    cli.run(main, PARSER)
