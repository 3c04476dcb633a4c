"""How the processes of one run find each other, agree, and notice that one is missing.

`jax.distributed` keeps a table of keys and values, in which each process publishes a record of
itself. Every wait between processes has a name, a limit, and an error that names who is missing.

JAX's `multihost_utils` was tried (jax 0.10.2). `broadcast_one_to_all` and `process_allgather` run
on the devices, and hang without a limit or a name if a process is stuck.
`reached_preemption_sync_point` sees only SIGTERM, and only if Python has no handler for it. It
discards a second SIGTERM, and names neither the signal nor its process.
"""

import collections
import contextlib
import functools
import glob
import importlib.util
import json
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from effnet_jax.errors import RETRY, ProcessLost, UserError
from effnet_jax.run import buckets, coordinator
from effnet_jax.run.signals import Signals, metadata
from effnet_jax.run.workers import abandonable

REPORT_SECONDS = 20  # Between two lines about a wait for processes to join.
# Used only if our own watch fails: JAX's message names no process, and JAX aborts.
HEARTBEAT_SECONDS = 180
BEAT_SECONDS = 1.0  # Longer for hundreds of processes, because each reads the records of all.
ASK_BEATS = 10  # How long to watch whether a process with the same number is alive.
END_SECONDS = 300  # How long to wait for all processes at the end of a run.
FLAGS = "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I"
Notes = dict[int, str]  # By index of a process.


class OtherFailed(Exception):
    """This process has no error, but another one failed and will not reach a wait."""


def find_cluster(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name of the launcher, if JAX can find the other processes by itself.

    None for a single process, for example in a login shell or in a SLURM job script outside srun.
    """
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        workers = environment.get("TPU_WORKER_HOSTNAMES")
        if workers is None and importlib.util.find_spec("libtpu"):
            workers = metadata("attributes/worker-network-endpoints")
        if "," in (workers or "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
            return "TPU pod"
    # The number of tasks of the step that srun started; SLURM_NTASKS is set in the script as well.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "SLURM"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    # JAX needs this optional package to ask Kubernetes for the number of pods.
    return "Kubernetes" if indexed and importlib.util.find_spec("kubernetes") else None


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    seconds: float,
) -> "Alone":
    """Joins the other processes of a run, if any; must be called before any other use of JAX.

    The first three arguments are HOST:PORT of process 0, the number of processes and the index of
    this one; all are None for a single process or a cluster. Exits with RETRY if the others have
    not joined after `seconds`, or if a process with this number is running already.
    """
    flags, cluster = (coordinator_address, num_processes, process_id), None
    if flags == (None, None, None):
        if not (cluster := find_cluster()):
            return ALONE
    elif None in flags:
        raise UserError(f"{FLAGS} go together: give all three, or none")
    elif not 0 <= process_id < num_processes:
        last = f"{num_processes - 1} (--num_processes={num_processes})"
        raise UserError(f"--process_id={process_id} is not between 0 and {last}")
    else:
        coordinator.check_address(coordinator_address, binds=process_id == 0)
        beat = max(BEAT_SECONDS, num_processes / 64)
        if name := coordinator.find_running(coordinator_address, process_id, ASK_BEATS * beat):
            _exit(
                RETRY,  # A launcher tries again: the other process may be about to end.
                f"process {process_id}: error: the run at {coordinator_address} has {name}; "
                "a second process with this number would end that run. Wait for the other one or "
                "stop it; for another run, give all processes another port",
            )
    joined = threading.Event()
    who = "" if process_id is None else f"process {process_id}: "
    where = f"at {coordinator_address or cluster} for all {num_processes or ''} processes"
    waiting = threading.Thread(target=_report, args=(joined, who, where, seconds), daemon=True)
    waiting.start()
    jax.config.update("jax_enable_preemption_service", False)  # It would handle SIGTERM.
    try:
        initialize = functools.partial(
            jax.distributed.initialize,
            *flags,
            # With detection, a task of a cluster gets only one device of its node despite flags.
            cluster_detection_method=None if cluster else "deactivate",
            initialization_timeout=int(seconds) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        abandonable(initialize)  # Ctrl-C ends the wait.
        index, count = jax.process_index(), jax.process_count()
        return Processes(index, count, seconds) if count > 1 else ALONE
    except (RuntimeError, ValueError) as error:
        raise UserError(f"can't find the other processes ({error}); give {FLAGS}") from None
    finally:
        joined.set()


def _report(joined: threading.Event, who: str, where: str, seconds: float) -> None:
    """Prints progress until `joined`; ends this process after `seconds`, before JAX aborts it."""
    start, waited = time.monotonic(), 0.0
    while not joined.wait(min(REPORT_SECONDS, max(0.0, seconds - waited))):
        waited = time.monotonic() - start
        if waited >= seconds:
            _exit(
                RETRY,
                f"{who}error: waited {seconds:g} s (config.processes.start_seconds) {where}. Start "
                "each process with the same address and number of processes and its own "
                "--process_id; the port must be free on the first machine and open to the others",
            )
        print(f"{who}waiting {where}, {waited:.0f} of {seconds:g} s", file=sys.stderr, flush=True)


class Alone:
    """The only process of its run, which has nothing to agree on or to wait for."""

    # The index of this process, the number of processes, whether this one writes the logs, metrics
    # and pictures, and the prefix of its error messages.
    index, count, is_first, prefix = 0, 1, True, ""

    def watch(
        self, limits: ConfigDict, alarm: Callable[[str], None] = lambda message: None
    ) -> None:
        """Makes a lost or stalled process end the run, by the limits in `config.processes`.

        `alarm` is called with the message first.
        """

    def at(self, phase: str, step: int = 0) -> None:
        """Records progress; all processes record the same phases in the same order.

        "start" and "compile" may take `start_seconds`, other phases `stall_seconds`.
        """

    def agreed(self, signals: Signals) -> Callable[[], bool]:
        """Returns a function that returns True once all processes have agreed to stop.

        All processes call it at the same places, and their n-th calls return the same value. Once
        it is True it stays True, and `signals.name` names the signal and its process. Nothing is
        communicated until a signal comes.
        """
        return signals

    def share(self, value: float) -> dict[int, float]:
        """Publishes a number; returns the newest known one of each process, without waiting."""
        return {0: value}

    def describe(self, indices: list[int]) -> str:
        """Describes processes by number, machine, process id and last known phase."""
        return ", ".join(f"process {index}" for index in indices)

    def barrier(self, name: str, seconds: float, note: str = "", unless: str = "") -> Notes:
        """Waits until all processes are at this barrier; returns the note of each, by index.

        Each thread has to use its own names. Raises ProcessLost, which names the missing processes,
        after `seconds`, and OtherFailed if a process is at the barrier `unless` with a note.
        """
        return {0: note}

    def as_first(self, name: str, value: Callable[[], Any], seconds: float) -> Any:
        """Returns the first process's `value()`, sent as JSON: file systems may differ."""
        text = json.dumps(value()) if self.is_first else ""
        return json.loads(self.barrier(name, seconds, text)[0])

    def check_same(self, name: str, facts: Callable[[], Mapping[str, Any]], seconds: float) -> None:
        """Raises UserError on all processes if the `facts()` of one differ from the first's."""

    def check_shared(self, workdir: pathlib.Path, seconds: float) -> None:
        """Raises UserError on all processes if one does not see the first process's folder."""

    def who_is_lost(self, error: Exception) -> str | None:
        """Describes the process whose loss made a wait or a collective fail; None if none did."""

    def leave(self, code: int = 0, message: str = "") -> None:
        """Ends the run: at once on all processes if `code` is not 0, else when all call this."""


ALONE = Alone()


class Processes(Alone):
    """One of several processes of a run.

    One thread publishes a record of this process every second and reads those of the others. It
    hangs while process 0, which keeps the table, is suspended. A second thread therefore watches
    the time and ends the process, because a main thread that hangs in a collective can't be
    interrupted.

    To stop, every process asks in its loop whether to. Once a process publishes a signal, the
    thread of each answers with the number of questions so far, and the loop waits at its next
    question until all have answered. All stop at the first question after the highest number.
    """

    def __init__(self, index: int, count: int, seconds: float):
        self.index, self.count, self.is_first = index, count, index == 0
        self.prefix = f"process {index}: "
        # JAX has no public name for its table.
        state = multihost_utils.distributed.global_state
        self._client = state.client
        self._limits = self._signals = self._stop_at = None
        self._alarm: Callable[[str], None] = lambda message: None
        # "moves" counts calls of `at`, and "asked" the questions whether to stop. "stop" names a
        # signal to this process. "answer" is what "asked" was when it heard of any signal.
        self._mine = {"name": socket.gethostname(), "pid": os.getpid(), "place": "start"}
        self._mine |= dict.fromkeys(("beat", "moves", "asked"), 0)
        self._mine |= dict.fromkeys(("stop", "answer", "ended"))
        self._records: dict[int, dict[str, Any]] = {index: self._mine}
        self._spoke = self._moved = time.monotonic()
        self._heard = dict.fromkeys(range(count), self._spoke)
        self._changed = threading.Condition()
        self._waits = collections.Counter()
        self._beat = max(BEAT_SECONDS, count / 64)
        self._left = threading.Event()
        self._speak()
        self.barrier("join", seconds)
        self._speak()  # Now all names are known.
        works = [self._keep_speaking, self._keep_watching]
        if self.is_first:
            answer = functools.partial(coordinator.answer, state.coordinator_address, self._answer)
            works.append(answer)
        for work in works:
            threading.Thread(target=work, daemon=True).start()

    def watch(
        self, limits: ConfigDict, alarm: Callable[[str], None] = lambda message: None
    ) -> None:
        self._limits, self._alarm = limits, alarm

    def at(self, phase: str, step: int = 0) -> None:
        with self._changed:
            self._mine["place"] = f"{phase} {step or ''}".strip()
            self._mine["moves"] += 1
            self._moved = time.monotonic()

    def agreed(self, signals: Signals) -> Callable[[], bool]:
        self._signals = signals
        return self._ask

    def _ask(self) -> bool:
        with self._changed:
            if self._mine["answer"] is not None:
                self._changed.wait_for(lambda: self._stop_at is not None)
            self._mine["asked"] += 1
            return self._stop_at is not None and self._mine["asked"] >= self._stop_at

    def share(self, value: float) -> dict[int, float]:
        with self._changed:
            self._mine["shared"] = value
        shared = {index: record.get("shared") for index, record in list(self._records.items())}
        return {index: number for index, number in shared.items() if number is not None}

    def barrier(self, name: str, seconds: float, note: str = "", unless: str = "") -> Notes:
        self._waits[name] += 1
        key, end = f"{name}/{self._waits[name]}", time.monotonic() + seconds
        self._client.key_value_set(f"effnet_jax/wait/{key}/{self.index}", note)
        while len(notes := self._notes(key)) < self.count:
            others = self._notes(f"{unless}/1") if unless else {}
            if failed := {index: text for index, text in others.items() if text}:
                raise OtherFailed(f"{self.describe(list(failed))}: {'; '.join(failed.values())}")
            if time.monotonic() > end:
                missing = [index for index in range(self.count) if index not in notes]
                raise ProcessLost(f"waited {seconds:g} s at {name!r} for {self.describe(missing)}")
            time.sleep(0.02 * max(1, self.count / 8))  # All processes ask process 0.
        return notes

    def _notes(self, key: str) -> Notes:
        table = self._client.key_value_dir_get(f"effnet_jax/wait/{key}")
        return dict(sorted((int(path.rpartition("/")[2]), note) for path, note in table))

    def check_same(self, name: str, facts: Callable[[], Mapping[str, Any]], seconds: float) -> None:
        mine = {key: str(value) for key, value in facts().items()}
        first = self.as_first(f"facts of {name}", lambda: mine, seconds)
        keys = [key for key in sorted(mine | first) if mine.get(key) != first.get(key)]
        lines = [f"{key}: {mine.get(key)}, and {first.get(key)} on process 0" for key in keys[:4]]
        notes = self.barrier(name, seconds, "; ".join(lines))
        if listed := [f"\n  {self.describe([i])} has {note}" for i, note in notes.items() if note]:
            raise UserError(
                f"the processes differ:{''.join(listed)}\nStart every process with the same "
                "command, code and data, and a --workdir on a file system that they share"
            )

    def check_shared(self, workdir: pathlib.Path, seconds: float) -> None:
        if buckets.is_bucket(workdir):
            self.check_same("the workdir", lambda: {"--workdir": workdir}, seconds)
            return
        with tempfile.NamedTemporaryFile(dir=workdir if self.is_first else None) as mark:
            path = workdir / self.as_first("a file", lambda: pathlib.Path(mark.name).name, seconds)
            seen = {f"--workdir={workdir}": "shared" if path.exists() else "another folder"}
            self.check_same("the workdir is shared", lambda: seen, seconds)

    def leave(self, code: int = 0, message: str = "") -> None:
        if not code:
            try:  # JAX's own wait for the others names no process, and aborts.
                self.barrier("the end", END_SECONDS)
            except ProcessLost as error:
                _exit(RETRY, f"{self.prefix}error: {error}")
            except jax.errors.JaxRuntimeError:  # No table: the first process is gone.
                pass
        self._mine["ended"] = [code, message]
        self._left.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._speak()
            if code and self.is_first:
                # The table ends with this process, and JAX aborts processes that can't reach it.
                end = time.monotonic() + 8 * self._beat
                while time.monotonic() < end and self._others() != self._lost(3):
                    time.sleep(0.1)
                    self._speak()
                time.sleep(0.5)
        if code:
            _exit(code)

    def who_is_lost(self, error: Exception) -> str | None:
        if isinstance(error, ProcessLost):
            return str(error)
        end = time.monotonic() + 12 * self._beat
        while time.monotonic() < end:
            if lost := self._lost(8):
                return f"lost {self.describe(lost)}"
            time.sleep(0.2)
        return None

    def _answer(self, index: int) -> tuple[int, str]:
        """The beat of a process, which grows while it is alive, and its description."""
        return self._records[index]["beat"], self.describe([index])

    def _keep_speaking(self) -> None:
        while not self._left.wait(self._beat):
            # An error means that process 0 is lost; the other thread sees for how long.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._speak()

    def _speak(self) -> None:
        """Publishes this process's record, reads the others', and agrees with them when to stop."""
        with self._changed:
            self._mine["beat"] += 1
            if self._signals is not None and self._stop_at is None:
                self._mine["stop"] = self._signals.name
                if self._mine["answer"] is None and any(x["stop"] for x in self._records.values()):
                    self._mine["answer"] = self._mine["asked"]
            record = json.dumps(self._mine)
        key = f"effnet_jax/process/{self.index}"
        self._client.key_value_set(key, record, allow_overwrite=True)
        table = self._client.key_value_dir_get("effnet_jax/process")
        self._spoke = time.monotonic()
        for key, text in table:
            index, record = int(key.rpartition("/")[2]), json.loads(text)
            if record["beat"] != self._records.get(index, {}).get("beat"):
                self._heard[index] = self._spoke
                self._records[index] = record
        self._heard[self.index], self._records[self.index] = self._spoke, self._mine
        with self._changed:
            self._agree()

    def _agree(self) -> None:
        """Sets the question to stop at: the first that no process had asked before its answer."""
        records = [self._records[index] for index in sorted(self._records)]
        answers = [each["asked"] if each["ended"] else each["answer"] for each in records]
        heard = self._mine["answer"] is not None and len(answers) == self.count
        if self._stop_at is not None or not heard or None in answers:
            return
        if self._signals.name is None:
            index = next(index for index, each in enumerate(records) if each["stop"])
            self._signals.name = f"{records[index]['stop']} on process {index}"
        self._stop_at = max(answers) + 1
        self._changed.notify_all()

    def _keep_watching(self) -> None:
        while not self._left.wait(self._beat / 2):
            for index, record in list(self._records.items()):
                code, message = record["ended"] or (0, "")
                # All may end for the same reason, each with its own message: wait a little.
                if index != self.index and code and not self._left.wait(3 * self._beat):
                    self._end(code, f"{self.describe([index])} ended: {message}")
            if self._limits is not None and not self._left.is_set():
                self._check_limits(self._limits)

    def _check_limits(self, limits: ConfigDict) -> None:
        if lost := self._lost(max(limits.lost_seconds / self._beat, 5)):
            self._end(RETRY, f"lost {self.describe(lost)}")
        still = time.monotonic() - self._moved
        starts = self._mine["place"] in ("start", "compile")
        if still > (limits.start_seconds if starts else limits.stall_seconds):
            records, moves = self._records, self._mine["moves"]
            behind = [index for index in records if records[index]["moves"] < moves]
            others = f"behind: {self.describe(behind)}" if behind else "none is behind"
            self._end(RETRY, f"no progress for {still:.0f} s in {self._mine['place']}; {others}")

    def _end(self, code: int, message: str) -> None:
        """Ends this process, and the others by publishing the end."""
        if self._left.is_set():
            return
        more = ". Run the same command on all processes to resume"
        more = more if code == RETRY and "Run the same" not in message else ""
        self._alarm(message)
        with contextlib.suppress(OSError):
            print(f"{self.prefix}error: {message}{more}", file=sys.stderr, flush=True)
        threading.Timer(12 * self._beat, os._exit, [code]).start()  # Publishing may get stuck.
        self.leave(code, message)

    def _others(self) -> list[int]:
        """The other processes that have not published that they end."""
        ended = {index for index, record in self._records.items() if record["ended"]}
        return [index for index in range(self.count) if index not in ended | {self.index}]

    def _lost(self, beats: float) -> list[int]:
        """The other processes that have not ended and have published nothing for `beats` beats."""
        before = time.monotonic() - beats * self._beat
        if self._spoke < before and not self.is_first:
            return [0]  # Without its table nothing is known about the others.
        return [index for index in self._others() if self._heard[index] < before]

    def describe(self, indices: list[int]) -> str:
        def one(index: int) -> str:
            if index not in self._records:
                return f"process {index} (never heard of)"
            record, silent = self._records[index], time.monotonic() - self._heard[index]
            heard = f", last heard {silent:.0f} s ago" if silent > 3 * self._beat else ""
            name = f"process {index} ({record['name']}, pid {record['pid']})"
            return f"{name}{heard}, in {record['place']}"

        return "; ".join(map(one, indices))


def _exit(code: int, message: str = "") -> None:
    """Ends the process whatever its threads do, without JAX's wait for the others."""
    with contextlib.suppress(OSError):  # The output has no reader any more.
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
