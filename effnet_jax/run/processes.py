"""How the processes of one run find each other, agree, and notice that one is missing.

The engine is `jax.distributed`. Its coordination service keeps a table of keys and values that
every process can read. This module publishes a line about each process there, and reads those of
the others, so that a wait between processes has a name, a limit, and a message that says who is
missing. A thread that is stuck in a collective can't be interrupted: another thread ends the
process.
"""

import glob
import hashlib
import importlib.util
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from effnet_jax.errors import RETRY, ProcessLost, UserError

JOIN_SECONDS = 300  # Until all processes have to be there.
# Only if our own watch fails: JAX's message names nobody, and it aborts the process.
HEARTBEAT_SECONDS = 180
BEAT_SECONDS = 1.0  # At least; with hundreds of processes more, as each reads the records of all.
END_SECONDS = 300  # Until all processes have come to the end of a run.
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/"
Interrupted = Any  # As training.interruption.Interruption: called, and has a name.


def metadata(path: str) -> str | None:
    """What Google Cloud's metadata server says about this machine; None where there is none."""
    request = urllib.request.Request(METADATA + path, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=1) as answer:
            return answer.read().decode()
    except OSError:
        return None


def find_cluster(environment: Mapping[str, str] = os.environ) -> str | None:
    """What started this process together with others, as far as JAX can find them by itself.

    Returns:
      "TPU pod", "SLURM", "Open MPI" or "Kubernetes"; None for one process on its own, as in a
      login shell or in the script of a SLURM job outside srun.
    """
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        workers = environment.get("TPU_WORKER_HOSTNAMES")
        if workers is None and importlib.util.find_spec("libtpu"):
            workers = metadata("attributes/worker-network-endpoints")
        if "," in (workers or "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
            return "TPU pod"
    # Of the step that srun started; SLURM_NTASKS is the job's, in its script as well.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "SLURM"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    # With it JAX asks for the number of pods; it is there where somebody wants that.
    return "Kubernetes" if indexed and importlib.util.find_spec("kubernetes") else None


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: float = JOIN_SECONDS,
) -> "Alone | Processes":
    """Joins the processes of a run, if there are several; call it before anything else of JAX.

    Args:
      coordinator_address: HOST:PORT of process 0, a free port there; all three, or none to find
        them out where `find_cluster` does.
      num_processes, process_id: how many there are, and which this is, from 0.
      seconds: until all have to be there.

    Raises:
      UserError: some of the three are missing, or make no sense.
    """
    given = (coordinator_address, num_processes, process_id)
    names = "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I"
    if all(value is None for value in given):
        cluster = find_cluster()
        if cluster is None:
            return ALONE
        where = f"the first process of the {cluster}"
    elif None in given:
        raise UserError(f"{names} go together: give all three, or none")
    else:
        where = coordinator_address
        if not where.rpartition(":")[0] or not where.rpartition(":")[2].isdigit():
            raise UserError(f"--coordinator_address={where} is not HOST:PORT")
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id={process_id} of --num_processes={num_processes}")

    def give_up() -> None:
        who = "" if process_id is None else f"process {process_id}: "
        of = "all" if num_processes is None else f"all {num_processes}"
        _exit(
            RETRY,
            f"{who}error: {of} processes were not there after {seconds:g} s, at {where}. Is each "
            "of them started, with the same address and number and another id, and is the port "
            "free there, and open to the other machines?",
        )

    # JAX's own limit aborts the process with a trace of C++ calls, so ours comes first.
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    # It would take SIGTERM away from us.
    jax.config.update("jax_enable_preemption_service", False)
    options = {
        "initialization_timeout": int(seconds) + 60,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
    }
    try:
        if coordinator_address is None:
            jax.distributed.initialize(**options)
        else:
            # Else a cluster's task gets one device of its node, whatever the flags say.
            options["cluster_detection_method"] = "deactivate"
            jax.distributed.initialize(*given, **options)
        index, count = jax.process_index(), jax.process_count()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"can't find the other processes ({error}); give {names}") from None
    finally:
        timer.cancel()
    return Processes(index, count) if count > 1 else ALONE


def code_hash() -> str:
    """Of this package's source files."""
    root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Alone:
    """The processes of a run where there is one: nothing to agree on or to wait for.

    Attributes:
      index, count: of this process, from 0, and of all.
      is_first: whether this process writes for people: logs, metrics, pictures.
      prefix: what a message of this process begins with.
    """

    index, count, is_first, prefix = 0, 1, True, ""

    def watch(self, limits: ConfigDict) -> None:
        """From now on, a process that is lost or stalls ends the run, by `config.processes`."""

    def at(self, phase: str, step: int = 0) -> None:
        """Notes progress. All processes note the same things in the same order.

        Args:
          phase: "start" and "compile" may take `start_seconds`, all others `stall_seconds`.
          step: or batch, for the message.
        """

    def agreed(self, interrupted: Interrupted) -> Callable[[], bool]:
        """As `interrupted`, but all processes get the same answer to the same question.

        Args:
          interrupted: this process's signals; it takes the name of another process's signal.

        Returns:
          To be called by all processes at the same places: the n-th call returns the same on all,
          and once True always True. It costs no communication until a signal came somewhere.
        """
        return interrupted

    def barrier(self, name: str, seconds: float, note: str = "") -> dict[int, str]:
        """Waits until all processes are here; returns the note of each.

        Raises:
          ProcessLost: names the barrier, and who did not come.
        """
        return {0: note}

    def gather(
        self, name: str, seconds: float, note: str = "", check: Callable[[], None] = lambda: None
    ) -> dict[int, str]:
        """As `barrier`, for any thread; each name is used once, in any order.

        Args:
          name: of the wait; no other of the run has it.
          seconds: that a process may be late.
          note: for the others.
          check: called while this process waits; what it raises ends the wait.
        """
        return {0: note}

    def gathered(self, name: str) -> dict[int, str]:
        """The notes of the processes that came to `gather` so far."""
        return {}

    def check_same(self, name: str, facts: Callable[[], Mapping[str, Any]], seconds: float) -> None:
        """Raises a UserError, on all processes, if the facts of one differ from the first's.

        Args:
          name: of the wait.
          facts: gives anything with a short text, by name; not called in a single process.
          seconds: that a process may be late.
        """

    def as_first(self, name: str, value: Callable[[], Any], seconds: float) -> Any:
        """The first process's `value()`, on all of them: file systems may differ between machines.

        Args:
          name: of the wait.
          value: gives what JSON can hold; called on the first process alone.
          seconds: that a process may be late.
        """
        return value()

    def check_shared(self, workdir: pathlib.Path, seconds: float) -> None:
        """Raises a UserError, on all processes, if they do not see the first's folder."""

    def who_is_lost(self, error: Exception) -> str | None:
        """Names the process whose loss made a wait or a collective fail; None if none is lost."""

    def leave(self, code: int = 0, message: str = "") -> None:
        """Tells the others that this process ends; with a code, ends it, and the others with it.

        Args:
          code: 0 where all processes end by themselves at the same place.
          message: why, for the others.
        """


ALONE = Alone()


def _exit(code: int, message: str = "") -> None:
    """Ends the process whatever its threads do, and without JAX's wait for the others."""
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Processes(Alone):
    """This process among the others of its run.

    One thread publishes a record of this process and reads the others', every second; as it may get
    stuck where the coordinator is asleep, a second one looks at the clock.

    Stopping: once a process publishes a signal, every process's thread answers with the number of
    questions that its loop has asked so far, and the loop waits at the next one until all have
    answered. The first question after the highest number is the one to stop at. A loop that is
    itself stuck in a collective does not hold up the answers.
    """

    def __init__(self, index: int, count: int):
        # The only public way to the table; checkpoint.py is otherwise the one that knows Orbax.
        from orbax.checkpoint import multihost

        self.index, self.count, self.is_first = index, count, index == 0
        self.prefix = f"process {index}: "
        self._limits: ConfigDict | None = None
        self._client = multihost.get_jax_distributed_client()
        self._interrupted: Interrupted | None = None
        self._mine = {
            "name": socket.gethostname(),
            "pid": os.getpid(),
            "beat": 0,
            "phase": "start",
            "step": 0,
            "moves": 0,  # Calls of `at`.
            "asked": 0,  # Questions whether to stop that were answered.
            "stop": None,  # Name of the signal that came here.
            "answer": None,  # `asked` when this process heard of a signal; it waits from there on.
            "ended": None,  # Exit code and message.
        }
        self._records: dict[int, dict[str, Any]] = {index: self._mine}
        now = time.monotonic()
        self._heard = dict.fromkeys(range(count), now)
        self._spoke = self._moved = now
        self._changed = threading.Condition()
        self._stop_at: int | None = None
        self._waits = 0
        self._beat = max(BEAT_SECONDS, count / 64)
        self._left = threading.Event()
        self._speak()
        self.barrier("join", JOIN_SECONDS, "")
        self._speak()  # Now all names are known.
        for work in (self._keep_speaking, self._keep_watching):
            threading.Thread(target=work, daemon=True).start()

    # What this process does.

    def watch(self, limits: ConfigDict) -> None:
        self._limits = limits

    def at(self, phase: str, step: int = 0) -> None:
        with self._changed:
            self._mine |= {"phase": phase, "step": step, "moves": self._mine["moves"] + 1}
            self._moved = time.monotonic()

    def agreed(self, interrupted: Interrupted) -> Callable[[], bool]:
        self._interrupted = interrupted
        return self._asks

    def _asks(self) -> bool:
        with self._changed:
            if self._mine["answer"] is not None:
                self._changed.wait_for(lambda: self._stop_at is not None)
            self._mine["asked"] += 1
            return self._stop_at is not None and self._mine["asked"] >= self._stop_at

    def barrier(self, name: str, seconds: float, note: str = "") -> dict[int, str]:
        self._waits += 1
        return self._wait(f"wait/{self._waits}", name, seconds, note)

    def gather(
        self, name: str, seconds: float, note: str = "", check: Callable[[], None] = lambda: None
    ) -> dict[int, str]:
        return self._wait(f"gather/{name}", name, seconds, note, check)

    def gathered(self, name: str) -> dict[int, str]:
        return self._notes(f"gather/{name}")

    def check_same(self, name: str, facts: Callable[[], Mapping[str, Any]], seconds: float) -> None:
        mine = {key: str(value) for key, value in facts().items()}
        theirs = json.loads(self._tell(f"facts of {name}", json.dumps(mine), seconds))
        lines = [
            f"{key}: {mine.get(key)}, and {theirs.get(key)} on process 0"
            for key in sorted(mine | theirs)
            if mine.get(key) != theirs.get(key)
        ]
        notes = self.barrier(name, seconds, "; ".join(lines[:4]))
        if different := {index: note for index, note in notes.items() if note}:
            listed = "\n".join(f"  {self.describe([i])} has {different[i]}" for i in different)
            raise UserError(
                f"the processes differ:\n{listed}\nStart the same command, code and data for "
                "every process"
            )

    def as_first(self, name: str, value: Callable[[], Any], seconds: float) -> Any:
        text = json.dumps(value() if self.is_first else None)
        return json.loads(self._tell(name, text, seconds))

    def check_shared(self, workdir: pathlib.Path, seconds: float) -> None:
        token = self._tell("the workdir", secrets.token_hex(8), seconds)
        path = workdir / f".shared_{token}"
        if self.is_first:
            path.touch()
        self.barrier("the workdir is written to", seconds)
        notes = self.barrier("the workdir is shared", seconds, "" if path.exists() else "not there")
        if self.is_first:
            path.unlink()
        if missing := [index for index, note in notes.items() if note]:
            raise UserError(
                f"--workdir={workdir} of process 0 is not that of {self.describe(missing)}; it has "
                "to be on a file system that all processes share"
            )

    def _wait(
        self,
        key: str,
        name: str,
        seconds: float,
        note: str,
        check: Callable[[], None] = lambda: None,
    ) -> dict[int, str]:
        self._client.key_value_set(f"effnet_jax/{key}/{self.index}", note)
        end = time.monotonic() + seconds
        while len(notes := self._notes(key)) < self.count:
            check()
            if time.monotonic() > end:
                missing = [process for process in range(self.count) if process not in notes]
                raise ProcessLost(f"waited {seconds:g} s at {name!r} for {self.describe(missing)}")
            time.sleep(0.02 * max(1, self.count / 8))  # All ask the same process.
        return notes

    def _notes(self, key: str) -> dict[int, str]:
        table = self._client.key_value_dir_get(f"effnet_jax/{key}")
        return dict(sorted((int(path.rpartition("/")[2]), note) for path, note in table))

    def _tell(self, name: str, text: str, seconds: float) -> str:
        """What the first process tells, on all processes."""
        key = f"effnet_jax/told/{name}/{self._waits}"
        if self.index == 0:
            self._client.key_value_set(key, text)
        self.barrier(name, seconds, "")
        return self._client.blocking_key_value_get(key, int(seconds * 1000))

    def leave(self, code: int = 0, message: str = "") -> None:
        if not code:
            try:  # Watched: JAX's own wait for the others names nobody, and aborts.
                self.barrier("the end", END_SECONDS, "")
            except ProcessLost as error:
                _exit(RETRY, f"process {self.index}: error: {error}")
            except jax.errors.JaxRuntimeError:  # No table: the first process is gone.
                pass
        self._mine["ended"] = [code, message]
        self._left.set()
        try:
            self._speak()
            if code and self.index == 0:
                # The table is in this process, and JAX aborts those that can't reach it.
                end = time.monotonic() + 8 * self._beat
                while time.monotonic() < end and not self._all_ended():
                    time.sleep(0.1)
                    self._speak()
                time.sleep(0.5)
        except jax.errors.JaxRuntimeError:
            pass
        if code:
            _exit(code)

    def _all_ended(self) -> bool:
        lost = self._lost(3 * self._beat)
        return all(
            process in lost or (process in self._records and self._records[process]["ended"])
            for process in range(self.count)
        )

    def who_is_lost(self, error: Exception) -> str | None:
        if isinstance(error, ProcessLost):
            return str(error)
        end = time.monotonic() + 12 * self._beat
        while time.monotonic() < end:
            if lost := self._lost(8 * self._beat):
                return f"lost {self.describe(lost)}"
            time.sleep(0.2)
        return None

    # What its threads do.

    def _keep_speaking(self) -> None:
        while not self._left.wait(self._beat):
            try:
                self._speak()
            except jax.errors.JaxRuntimeError:
                continue  # The coordinator is lost; the other thread sees how long for.

    def _speak(self) -> None:
        """Publishes this process's record, reads the others', and takes part in an agreement."""
        with self._changed:
            self._mine["beat"] += 1
            if self._interrupted is not None and self._stop_at is None:
                self._mine["stop"] = self._interrupted.name
                signalled = any(record["stop"] for record in self._records.values())
                if signalled and self._mine["answer"] is None:
                    self._mine["answer"] = self._mine["asked"]
            record = json.dumps(self._mine)
        key = f"effnet_jax/process/{self.index}"
        self._client.key_value_set(key, record, allow_overwrite=True)
        table = self._client.key_value_dir_get("effnet_jax/process")
        self._spoke = now = time.monotonic()
        for key, text in table:
            process, record = int(key.rpartition("/")[2]), json.loads(text)
            if process != self.index:
                before = self._records.get(process)
                if before is None or before["beat"] != record["beat"]:
                    self._heard[process] = now
                self._records[process] = record
        with self._changed:
            if self._stop_at is None:
                self._agree()

    def _agree(self) -> None:
        """All stop at the first question that none of them had asked when it heard of a signal."""
        answers = [
            record["asked"] if record["ended"] else record["answer"]
            for record in self._records.values()
        ]
        if self._mine["answer"] is None or len(answers) < self.count or None in answers:
            return
        if self._interrupted.name is None:
            names = {process: self._records[process]["stop"] for process in sorted(self._records)}
            process = next(process for process, name in names.items() if name)
            self._interrupted.name = f"{names[process]} on process {process}"
        self._stop_at = max(answers) + 1
        self._changed.notify_all()

    def _keep_watching(self) -> None:
        while not self._left.wait(self._beat / 2):
            for process, record in list(self._records.items()):
                code, message = record["ended"] or (0, "")
                # All may end for the same reason, each with its own message: wait a little.
                if process != self.index and code and not self._left.wait(3 * self._beat):
                    self._end(code, f"{self.describe([process])} ended: {message}")
            if self._limits is None or self._left.is_set():
                continue
            if lost := self._lost(max(self._limits.lost_seconds, 5 * self._beat)):
                self._end(RETRY, f"lost {self.describe(lost)}")
            still = time.monotonic() - self._moved
            starts = self._mine["phase"] in ("start", "compile")
            if still > (self._limits.start_seconds if starts else self._limits.stall_seconds):
                records = self._records
                behind = [h for h in records if records[h]["moves"] < self._mine["moves"]]
                others = f"behind: {self.describe(behind)}" if behind else "none is behind"
                place = _place(self._mine)
                self._end(RETRY, f"no progress for {still:.0f} s in {place}; {others}")

    def _end(self, code: int, message: str) -> None:
        """Ends this process and, by telling them, the others."""
        if self._left.is_set():
            return
        more = ". The same command on all processes goes on" if code == RETRY else ""
        print(f"process {self.index}: error: {message}{more}", file=sys.stderr, flush=True)
        threading.Timer(12 * self._beat, os._exit, [code]).start()  # Should telling get stuck.
        self.leave(code, message)

    def _lost(self, seconds: float) -> list[int]:
        """The processes that were not heard of for so long, and did not say that they end."""
        now = time.monotonic()
        if now - self._spoke > seconds and self.index != 0:
            return [0]  # Without the table nothing is known of the others.
        return [
            process
            for process in range(self.count)
            if process != self.index
            and now - self._heard[process] > seconds
            and not (process in self._records and self._records[process]["ended"])
        ]

    def describe(self, processes: list[int]) -> str:
        """Processes by number, name and process, and where each was when it was last heard of."""
        now, told = time.monotonic(), []
        for process in processes:
            if process not in self._records:
                told.append(f"process {process} (never heard of)")
                continue
            record = self._records[process]
            silent = now - self._heard[process]
            heard = f", last heard {silent:.0f} s ago" if silent > 3 * self._beat else ""
            told.append(
                f"process {process} ({record['name']}, pid {record['pid']}){heard}, in "
                f"{_place(record)}"
            )
        return "; ".join(told)


def _place(record: Mapping[str, Any]) -> str:
    return f"{record['phase']} {record['step'] or ''}".strip()
