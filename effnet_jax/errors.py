"""Errors for the user: each has one message that names the problem and the remedy."""

import difflib
import importlib.util
from collections.abc import Iterable

# Exit code: the same command continues (EX_TEMPFAIL: a scheduler may queue it again).
RETRY = 75
LISTED = 50  # Options in a message, at most.


class UserError(ValueError):
    """Bad input. The entry points print only the message, without a traceback, and exit with 2."""


class NonFiniteLossError(Exception):
    """Loss, gradient or weights became NaN or infinite; `step` is the first with such a value."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Interrupted(Exception):
    """The run saved and stopped because it was asked to; the same command resumes it."""


class StoppedEarly(Interrupted):
    """SIGTERM arrived before there was anything to save; the same command restarts the run."""


class ProcessLost(Exception):
    """Another process of the run is asleep, dead or stuck; the message names it."""


class SaveFailed(Exception):
    """The last checkpoint of a run could not be saved; the message names the last good one."""


class RunsFailed(Exception):
    """Some runs or files of weights failed, others did not; the message lists the failed ones."""


class ImagesFailed(Exception):
    """Some images could not be read, others were; the message says how many."""


def near(name: str, options: Iterable[str], count: int = 4) -> str:
    """Returns the options most similar to `name`, or all if none is, as text for a message."""
    options = [str(option) for option in options]
    found = difflib.get_close_matches(str(name), options, n=count, cutoff=0.5)
    listed = found or sorted(options)
    more = [f"... ({len(listed)} in all)"] if len(listed) > LISTED else []
    return ", ".join([*listed[:LISTED], *more])


def check_choice(what: str, name: str, options: Iterable[str]) -> str:
    """Returns `name` if it is one of `options`; else raises UserError with the similar ones."""
    options = list(options)
    if name not in options:
        raise UserError(f"unknown {what} {name!r}; did you mean: {near(name, options)}?")
    return name


def check_packages(what: str, *names: str) -> None:
    """Raises UserError, with the command that installs them, if packages are missing.

    A name may have a version, as in "package==1.2".
    """
    modules = {name: name.partition("==")[0].replace("-", "_") for name in names}
    missing = [name for name, module in modules.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
