"""Errors meant for the person at the keyboard: one message that names the thing and the remedy."""

import difflib
import importlib.util
from collections.abc import Iterable

# Exit code: the same command goes on (EX_TEMPFAIL: a scheduler may queue it again).
RETRY = 75
LISTED = 50  # Options in a message, at most.


class UserError(ValueError):
    """Bad input. The entry points print the message alone, without a traceback, and exit with 2."""


class NonFiniteLossError(Exception):
    """Loss, gradient or weights became NaN or infinite, as `step` is the first to show."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Interrupted(Exception):
    """The run saved and stopped because it was asked to; the same command goes on with it."""


class StoppedEarly(Interrupted):
    """SIGTERM came before there was anything to save; the same command starts the run again."""


class ProcessLost(Exception):
    """Another process of the run is asleep, dead or stuck; the message names it."""


class SaveFailed(Exception):
    """The last checkpoint of a run could not be saved; the message says which one is there."""


class RunsFailed(Exception):
    """Some runs, or files of weights, failed and the others did not; the message lists them."""


class ImagesFailed(Exception):
    """Some images could not be read, and the others were; the message says how many."""


def near(name: str, options: Iterable[str], count: int = 4) -> str:
    """The options most like `name`, or all of them where none is, as text for a message."""
    options = [str(option) for option in options]
    found = difflib.get_close_matches(str(name), options, n=count, cutoff=0.5)
    listed = found or sorted(options)
    more = [f"... ({len(listed)} in all)"] if len(listed) > LISTED else []
    return ", ".join([*listed[:LISTED], *more])


def check_choice(what: str, name: str, options: Iterable[str]) -> str:
    """Returns `name` if it is one of `options`; otherwise a UserError that lists the near ones."""
    options = list(options)
    if name not in options:
        raise UserError(f"unknown {what} {name!r}; did you mean: {near(name, options)}?")
    return name


def check_packages(what: str, *names: str) -> None:
    """Raises a UserError, with the command that installs them, where packages are missing.

    A name may have a version, as in "package==1.2".
    """
    modules = {name: name.partition("==")[0].replace("-", "_") for name in names}
    missing = [name for name, module in modules.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
