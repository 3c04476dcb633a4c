"""SIGTERM and Ctrl-C become a request to save and stop."""

import signal
import types
from collections.abc import Callable


class Interruption:
    """As a context, notes the first SIGTERM or SIGINT instead of dying of it.

    Call it to ask whether one came. A second signal acts as if nobody listened, so that a hanging
    run can still be ended. Only the main thread may listen; elsewhere (a notebook's executor) this
    does nothing.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._previous = {}
        self.name: str | None = None

    def __call__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # Not the main thread.
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.name = signal.Signals(number).name
        self.__exit__()
        self._say(f"{self.name}: saving a checkpoint, then stopping (again: stop at once)")
