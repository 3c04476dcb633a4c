"""SIGTERM, Ctrl-C and a TPU's maintenance become a request to save and stop."""

import signal
import threading
import types

import jax

from effnet_jax.run.processes import metadata
from effnet_jax.run.writers import say

MAINTENANCE_SECONDS = 5.0  # Between two questions; a notice comes a minute ahead or more.


class Signals:
    """As a context, notes the first SIGTERM or SIGINT instead of dying of it.

    Call it to ask whether one came. A second signal acts as if nobody listened, so that a hanging
    run can still be ended. Only the main thread may listen; elsewhere (a notebook's executor) this
    does nothing.
    """

    def __init__(self):
        self._previous = {}
        self._left = threading.Event()
        self.name: str | None = None

    def __call__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # Not the main thread.
                break
        if jax.default_backend() == "tpu":
            threading.Thread(target=self._watch_maintenance, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._restore()
        self.name = signal.Signals(number).name
        say(f"{self.name}: saving a checkpoint, then stopping (again: stop at once)")

    def _watch_maintenance(self) -> None:
        """Google Cloud announces that a machine is about to be stopped."""
        while not self._left.wait(MAINTENANCE_SECONDS):
            event = metadata("maintenance-event")
            if event not in (None, "NONE") and self.name is None:
                self.name = f"maintenance ({event})"
                say(f"{self.name}: saving a checkpoint, then stopping")
                return
