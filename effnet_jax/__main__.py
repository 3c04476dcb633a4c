"""Trains, evaluates, scales, explains and exports EfficientNet.

Examples:
  effnet-jax train --config=digits --workdir=runs/digits
  effnet-jax predict cat.jpg --weights=lite0.safetensors

`effnet-jax TOOL --help` explains a tool. `python -m effnet_jax` is the same command without an
installation. For tab completion, `pip install argcomplete`, and add to ~/.bashrc or ~/.zshrc:
eval "$(register-python-argcomplete effnet-jax)"
"""

import argparse
import ast
import importlib
import os
import pathlib
import sys

from effnet_jax import cli
from effnet_jax.errors import UserError, check_choice

# A tool is a module in effnet_jax/tools with a docstring, a `flags.Parser` named PARSER, and
# `main(args)`. It is imported only when it is used.
TOOLS = {p.stem: p for p in sorted(pathlib.Path(__file__).parent.glob("tools/[!_]*.py"))}


def main() -> None:
    if "_ARGCOMPLETE" in os.environ:
        complete(os.environ["COMP_LINE"].split()[1:2])
    with cli.output():
        _main()


def complete(chosen: list[str]) -> None:
    """Answers a shell that asks for completions of a tool's name, or of the flags of a tool."""
    import argcomplete

    parser = argparse.ArgumentParser()
    tools = parser.add_subparsers()
    for name in TOOLS:
        if name not in chosen:
            tools.add_parser(name)
            continue
        tool = importlib.import_module(f"effnet_jax.tools.{name}").PARSER
        completed = tools.add_parser(name, parents=[tool], add_help=False)
        for key in tool.config_keys():
            completed.add_argument(f"--config.{key}")
    argcomplete.autocomplete(parser)


def _main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: effnet-jax TOOL ...\n\n{__doc__.rstrip()}\n\ntools:")
        for name, path in TOOLS.items():
            summary = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
            print(f"  {name:18}{summary}")
        return
    try:
        check_choice("tool", name, TOOLS)
    except UserError as error:
        print(f"error: {error} effnet-jax --help lists all tools", file=sys.stderr)
        sys.exit(cli.BAD_INPUT)
    tool = importlib.import_module(f"effnet_jax.tools.{name}")
    tool.PARSER.prog = f"effnet-jax {name}"
    cli.run(tool.main, tool.PARSER, arguments)


if __name__ == "__main__":
    main()
