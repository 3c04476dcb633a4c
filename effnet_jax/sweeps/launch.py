"""Starts the runs of a sweep, here or on SLURM, and watches them until the last one ends."""

import dataclasses
import importlib.util
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from effnet_jax import cli
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.run import files
from effnet_jax.run.signals import Signals
from effnet_jax.run.workers import available_cores
from effnet_jax.sweeps import child
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.schedule import Planned
from effnet_jax.sweeps.watch import Watch

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLL = 0.2  # Seconds between two looks at the runs.


def command(folder: Folder, name: str) -> list[str]:
    """What runs one run; it can be pasted into a shell as well."""
    config = f"--config={ROOT / 'configs' / 'saved.py'}:{folder.config(name)}"
    return [sys.executable, str(ROOT / "train.py"), config, f"--workdir={folder.workdir(name)}"]


class Launcher(Protocol):
    """Starts runs and says which have ended."""

    def poll(self) -> list[tuple[str, str | None]]:
        """The runs that ended since the last call, each with what went wrong or None."""

    def running(self) -> list[str]:
        """Runs at work."""

    def stop(self) -> None:
        """Asks all runs to save and stop, and waits until they have."""


def explain(code: int) -> str:
    """An exit code of train.py in words."""
    known = {
        2: "bad input",
        3: "the loss was not finite",
        cli.INTERRUPTED: "interrupted, and saved",
    }
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return known.get(code, f"exit code {code}")


@dataclasses.dataclass
class Slot:
    """A share of this machine: cores, and GPUs where there are any to share."""

    cores: list[int]
    gpus: str | None

    def environment(self) -> dict[str, str]:
        threads = str(max(1, len(self.cores)))
        # NPROC is XLA's, the others are those of the libraries that NumPy and OpenCV come with.
        variables = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        result = dict.fromkeys(variables, threads)
        return result if self.gpus is None else {**result, "CUDA_VISIBLE_DEVICES": self.gpus}


def visible_gpus() -> list[str]:
    """The GPUs that runs can be given, by number; none where JAX has no CUDA."""
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    try:
        lines = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return []
    return [str(number) for number in range(len(lines.splitlines()))]


def slots(parallel: int | None) -> list[Slot]:
    """Divides the machine among `parallel` runs; by default one a GPU, or else one a core.

    Two runs on the same cores slow each other down by more than half, and a single core is the
    most efficient way to train a small network: no time goes into waiting for other threads.
    """
    cores, gpus = available_cores(), visible_gpus()
    count = parallel or len(gpus) or len(cores)
    if count > len(cores):
        raise UserError(f"--parallel={count}, and there are {len(cores)} cores")
    if gpus and count > len(gpus):
        raise UserError(f"--parallel={count}, and there are {len(gpus)} GPUs: one run each")
    share, each = len(cores) // count, len(gpus) // count
    return [
        Slot(
            cores[index * share : (index + 1) * share],
            ",".join(gpus[index * each : (index + 1) * each]) if gpus else None,
        )
        for index in range(count)
    ]


class Local:
    """Runs as processes on this machine, one for each slot, in the order given."""

    def __init__(self, folder: Folder, names: list[str], parts: list[Slot], lock: int):
        self._folder, self._queue, self._free, self._lock = folder, list(names), list(parts), lock
        self._jobs: dict[str, tuple[subprocess.Popen, Slot, float]] = {}

    def _start(self, name: str, slot: Slot) -> None:
        log = self._folder.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as output:
            output.write(f"{shlex.join(command(self._folder, name))}\n")
            output.write(f"on cores {slot.cores}, gpus {slot.gpus}\n")
            output.flush()
            cores = ",".join(map(str, slot.cores))
            process = subprocess.Popen(
                [sys.executable, child.__file__, cores, *command(self._folder, name)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **slot.environment()},
                pass_fds=[self._lock],
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on.
            )
        self._jobs[name] = process, slot, time.monotonic()

    def poll(self) -> list[tuple[str, str | None]]:
        ended = []
        for name, (process, slot, started) in list(self._jobs.items()):
            if (code := process.poll()) is None:
                continue
            del self._jobs[name]
            self._free.append(slot)
            if code == cli.DONE:
                seconds = time.monotonic() - started
                self._folder.finish(name, seconds, max(1, len(slot.cores)))
            ended.append((name, None if code == cli.DONE else explain(code)))
        while self._queue and self._free:
            self._start(self._queue.pop(0), self._free.pop(0))
        return ended

    def running(self) -> list[str]:
        return list(self._jobs)

    def stop(self) -> None:
        self._queue.clear()
        for process, _, _ in self._jobs.values():
            process.terminate()
        for process, _, _ in self._jobs.values():
            process.wait()


class TrainJob:
    """One run as submitit's job: what happens on the machine that SLURM gives."""

    def __init__(self, root: str, name: str):
        self.root, self.name = root, name
        self._process = None

    def __call__(self) -> str | None:
        """Trains; returns what went wrong, or None."""
        folder, started = Folder(self.root), time.monotonic()
        folder.log(self.name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder.log(self.name), "a") as output:
            arguments = command(folder, self.name)
            self._process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
            code = self._process.wait()
        if code != cli.DONE:
            return explain(code)
        folder.finish(self.name, time.monotonic() - started, len(available_cores()))
        return None

    def checkpoint(self) -> Any:
        """Called by submitit before a preemption or time limit: saves, and asks to be requeued."""
        import submitit

        if self._process:
            self._process.terminate()
            self._process.wait()
        return submitit.helpers.DelayedSubmission(TrainJob(self.root, self.name))


class Submitted:
    """Runs as jobs of submitit. A sweep that is started again finds the jobs it had submitted."""

    def __init__(self, folder: Folder, names: list[str], executor: Any):
        self._ids = folder.root / "jobs.json"
        known = files.read_json(self._ids) if self._ids.exists() else {}
        self._jobs = {}
        for name in names:
            if name in known:
                job = executor.job_class(folder=executor.folder, job_id=known[name])
                if not job.done():
                    self._jobs[name] = job
        left = [name for name in names if name not in self._jobs]
        with executor.batch():
            fresh = {name: executor.submit(TrainJob(str(folder.root), name)) for name in left}
        self._jobs |= fresh
        ids = {**known, **{name: job.job_id for name, job in fresh.items()}}
        files.write_json(self._ids, ids)

    def poll(self) -> list[tuple[str, str | None]]:
        ended = []
        for name, job in list(self._jobs.items()):
            if job.done():
                del self._jobs[name]
                error = job.exception()
                ended.append((name, job.result() if error is None else str(error)))
        return ended

    def running(self) -> list[str]:
        return list(self._jobs)

    def stop(self) -> None:
        """Leaves the jobs alone: they are SLURM's, and the same command finds them again."""


def slurm_executor(folder: Folder, parallel: int | None, parameters: str) -> Any:
    """submitit's executor; `parameters` are its own, as in "timeout_min=240,gpus_per_node=1"."""
    import submitit

    try:
        executor = submitit.AutoExecutor(folder.root / "slurm", cluster="slurm")
        given = dict(part.split("=", 1) for part in parameters.split(",") if part)
        values = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
        if parallel:
            values["slurm_array_parallelism"] = parallel
        executor.update_parameters(**values)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"SLURM can't be used here, or not with --slurm={parameters!r}: {error}. The "
            "parameters are submitit's, as in timeout_min=240,gpus_per_node=1; --launcher=local "
            "needs none"
        ) from None
    return executor


def run_all(
    plan: list[Planned],
    folder: Folder,
    launch: Callable[[list[str]], Launcher],
    csv: pathlib.Path,
) -> dict[str, str]:
    """Runs what isn't finished yet; returns what went wrong, by run.

    Args:
      plan: all runs.
      folder: where they live.
      launch: from the names of runs to the launcher that has them.
      csv: the table of results, written anew at every run that finishes.

    Raises:
      Interrupted: SIGTERM or Ctrl-C; the runs have saved.
    """
    left = [planned.run.name for planned in plan if folder.done(planned.run.name) is None]
    failed = {}
    folder.write_results(plan, csv)
    with Signals() as interrupted, Watch(folder, plan) as watch:
        launcher = launch(left)
        while left:
            for name, error in launcher.poll():
                left.remove(name)
                if error:
                    failed[name] = error
                watch.ended(name, error)
                folder.write_results(plan, csv)
            if interrupted():
                launcher.stop()
                raise Interrupted(
                    f"stopped by {interrupted.name} with {len(left)} of {len(plan)} runs to do; "
                    "run the same command again to go on"
                )
            watch.refresh(launcher.running(), left)
            time.sleep(POLL)
    return failed
