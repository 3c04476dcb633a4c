"""SIGTERM, Ctrl-C and TPU maintenance ask a run to save and stop; SIGUSR1 asks for a profile."""

import contextlib
import signal
import threading
import time
import urllib.request

import jax

from effnet_jax.errors import StoppedEarly
from effnet_jax.run.writers import say

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/"
MAINTENANCE_SECONDS = 5.0  # Between two requests; a notice comes at least a minute before.


def metadata(path: str) -> str | None:
    """Google Cloud's metadata about this machine; None outside Google Cloud."""
    request = urllib.request.Request(METADATA + path, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=1) as answer:
        return answer.read().decode()
    return None


class Signals:
    """As a context, records the first SIGTERM or SIGINT as `name`; a call returns whether one came.

    A second signal has its usual effect, so that a hanging run can be ended. So has the first one
    outside the main thread, where Python handles no signals. `effect` describes the reaction to the
    first signal, for its message. While there is nothing to save, `early` says where the program
    is, and the first signal raises at once: StoppedEarly for SIGTERM, KeyboardInterrupt for SIGINT.
    """

    def __init__(self, effect: str = "saving a checkpoint, then stopping", early: str = ""):
        self._previous, self._left = {}, threading.Event()
        self._effect, self.early = effect, early
        self._name: str | None = None
        self._came = 0.0
        self.profile_asked = False  # Set by each SIGUSR1; the profiler unsets it.

    @property
    def name(self) -> str | None:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name, self._came = name, time.monotonic()

    def seconds(self) -> float:
        """Seconds since the signal; a scheduler limits this time."""
        return time.monotonic() - self._came

    def __call__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
            self._usual = signal.signal(signal.SIGUSR1, self._ask)
        if jax.default_backend() == "tpu":
            threading.Thread(target=self._watch_maintenance, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.signal(signal.SIGUSR1, self._usual)

    def _ask(self, number: int, frame: object) -> None:
        self.profile_asked = True

    def _note(self, number: int, frame: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        name = signal.Signals(number).name
        if self.early and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.early:
            raise StoppedEarly(
                f"stopped by {name} {self.early}; checkpoints are as they were. Run the same "
                "command again to resume"
            )
        self.name = name
        say(f"{self.name}: {self._effect} (again: stop at once)")

    def _watch_maintenance(self) -> None:
        while not self._left.wait(MAINTENANCE_SECONDS) and self.name is None:
            if (event := metadata("maintenance-event")) not in (None, "NONE"):
                self.name = f"maintenance ({event})"
                say(f"{self.name}: {self._effect}")
