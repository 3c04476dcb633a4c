"""The command `effnet-jax TOOL ...`, or python -m effnet_jax TOOL ...

A tool is a module of effnet_jax/tools with a docstring, a `flags.Parser` called PARSER, and
`main(args)`. It is imported only when it is called.
"""

import ast
import importlib
import pathlib
import sys

from effnet_jax import cli
from effnet_jax.errors import UserError, check_choice


def main() -> None:
    with cli.output():
        _main()


def _main() -> None:
    paths = {p.stem: p for p in sorted(pathlib.Path(__file__).parent.glob("tools/[!_]*.py"))}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: effnet-jax TOOL ...; effnet-jax TOOL --help lists its flags\n")
        for name, path in paths.items():
            summary = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
            print(f"  {name:18}{summary}")
        return
    try:
        check_choice("tool", name, paths)
    except UserError as error:
        print(f"error: {error} effnet-jax --help lists all", file=sys.stderr)
        sys.exit(cli.BAD_INPUT)
    tool = importlib.import_module(f"effnet_jax.tools.{name}")
    tool.PARSER.prog = f"effnet-jax {name}"
    cli.run(tool.main, tool.PARSER, arguments)


if __name__ == "__main__":
    main()
