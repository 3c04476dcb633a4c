"""Calls a command of the user when a run ends or something is wrong with it."""

import contextlib
import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator

from effnet_jax.errors import NonFiniteLossError, UserError
from effnet_jax.run.writers import say

SECONDS = 30.0  # How long a run waits at its end for the commands.


class Notifier:
    """Calls `command EVENT MESSAGE` on the first process, without waiting for the command.

    Raises UserError if there is no such program. An empty command calls nothing.
    """

    def __init__(self, command: str, is_first: bool):
        try:
            self._words = shlex.split(command) if is_first else []
        except ValueError as error:
            raise UserError(f"config.notify.command={command!r}: {error}") from None
        if self._words and shutil.which(self._words[0]) is None:
            raise UserError(
                f"config.notify.command={command!r}: there is no program {self._words[0]!r} on "
                "PATH; give its path, and make it executable"
            )
        self._called: list[subprocess.Popen] = []

    def __call__(self, event: str, message: str) -> None:
        if not self._words:
            return
        try:
            call = subprocess.Popen([*self._words, event, message], stdin=subprocess.DEVNULL)
        except OSError as error:
            say(f"can't call config.notify.command: {error.strerror}. The run goes on")
            return
        self._called = [each for each in self._called if each.poll() is None] + [call]

    @contextlib.contextmanager
    def at_end(self, workdir: pathlib.Path) -> Iterator[None]:
        """Calls the command with "stop" or "loss" when the context ends, in whatever way."""
        try:
            yield
        except NonFiniteLossError as error:
            self("loss", str(error))
            raise
        except Exception as error:
            self("stop", str(error))
            raise
        else:
            self("stop", f"the run in {workdir} is done")
        finally:
            for call in self._called:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    call.wait(SECONDS)
