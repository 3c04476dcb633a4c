"""What a name on the command line stands for: a function in a file of a folder of configs/."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from effnet_jax.errors import UserError, check_choice

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


def load(what: str, folder: str, name: str, function: str) -> Callable[..., Any]:
    """`function` of the file configs/FOLDER/NAME.py, or of the file NAME where that ends in .py.

    Args:
      what: the kind of thing, for messages.
      folder: under configs/; its files are the choices.
      name: as on the command line.
      function: its name.

    Raises:
      UserError: there is no such file, it doesn't load, or it lacks the function.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".py":
        check_choice(what, name, [p.stem for p in (CONFIGS / folder).glob("[!_]*.py")])
        path = CONFIGS / folder / f"{name}.py"
    elif not path.is_file():
        raise UserError(f"no {what} file {path}")
    spec = importlib.util.spec_from_file_location(f"{folder}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"can't load {what} file {path}: {error}") from None
    if not hasattr(module, function):
        raise UserError(f"{what} file {path} needs a function {function}")
    return getattr(module, function)
