"""The command `effnet-jax TOOL ...`, also python -m effnet_jax TOOL ...

A tool is a module of effnet_jax/tools with a docstring, whose first line is listed here, `PARSER`
(a `cli.Parser`) and `main(args)`. It is imported only when it is called.
"""

import ast
import importlib
import pathlib
import sys

from effnet_jax import cli
from effnet_jax.errors import UserError, check_choice

TOOLS = pathlib.Path(__file__).with_name("tools")


def summary(name: str) -> str:
    """The first line of a tool's docstring."""
    return ast.get_docstring(ast.parse((TOOLS / f"{name}.py").read_text())).splitlines()[0]


def main() -> None:
    names = sorted(path.stem for path in TOOLS.glob("[!_]*.py"))
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: effnet-jax TOOL ...; effnet-jax TOOL --help lists its flags\n")
        print("\n".join(f"  {name:18}{summary(name)}" for name in names))
        return
    try:
        tool = importlib.import_module(f"effnet_jax.tools.{check_choice('tool', name, names)}")
    except UserError as error:
        print(f"error: {error} effnet-jax --help lists all", file=sys.stderr)
        sys.exit(cli.BAD_INPUT)
    tool.PARSER.prog = f"effnet-jax {name}"
    cli.run(tool.main, tool.PARSER, arguments)


if __name__ == "__main__":
    main()
