"""Starts the runs of a sweep, here or on SLURM, and follows them until the last one ends."""

import contextlib
import importlib.util
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, NamedTuple

from effnet_jax import cli
from effnet_jax.errors import Interrupted, UserError
from effnet_jax.run import files, writers
from effnet_jax.run.signals import Signals
from effnet_jax.run.workers import available_cores
from effnet_jax.sweeps import child
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.runs import Scheduled

EVERY = 1.0 if writers.ON_TERMINAL else 60.0  # Seconds between two states of the sweep.
CAUSES = {2: "bad input", 3: "the loss was not finite", cli.INTERRUPTED: "interrupted, and saved"}
# NPROC is XLA's, the others are those of the libraries that NumPy and OpenCV come with.
THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def command(folder: Folder, name: str) -> list[str]:
    """The command of one run, which also works in a shell."""
    arguments = [f"--config={folder.config(name)}", f"--workdir={folder.workdir(name)}"]
    return [sys.executable, "-m", "effnet_jax", "train", *arguments]


class Slot(NamedTuple):
    """A share of this machine: cores, and GPUs where there are any to share."""

    cores: list[int]
    gpus: str | None = None

    def environment(self) -> dict[str, str]:
        gpus = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}
        return dict.fromkeys(THREADS, str(len(self.cores))) | gpus


def visible_gpus() -> list[str]:
    """The GPUs that runs can be given, by number; none where JAX has no CUDA."""
    has_cuda = any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")))
    if has_cuda and "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    if not has_cuda or not shutil.which("nvidia-smi"):
        return []
    lines = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number in range(len(lines.splitlines()))]


def slots(parallel: int | None) -> list[Slot]:
    """Divides the machine among `parallel` runs; by default one a GPU, or else one a core.

    Two runs on the same cores slow each other down by more than half, and a single core is the
    most efficient way to train a small network: no time goes into waiting for other threads.
    """
    cores, gpus = available_cores(), visible_gpus()
    runs = parallel or len(gpus) or len(cores)
    if runs > len(cores):
        raise UserError(f"--parallel={runs}, and there are {len(cores)} cores")
    if gpus and runs > len(gpus):
        raise UserError(f"--parallel={runs}, and there are {len(gpus)} GPUs: one run each")
    size, each = len(cores) // runs, len(gpus) // runs
    shares = [(cores[i * size :][:size], gpus[i * each :][:each]) for i in range(runs)]
    return [Slot(some, ",".join(ids) if gpus else None) for some, ids in shares]


class Job:
    """One run as a process. It can be pickled, so that submitit calls it on SLURM's machine."""

    def __init__(self, root: str, name: str):
        self.root, self.name = root, name
        self._process, self._stopped = None, False

    def __call__(self, slot: Slot | None = None, *held: int) -> str | None:
        """Trains in a slot, with the files `held` open; returns what went wrong, or None."""
        folder, started = Folder(self.root), time.monotonic()
        slot = slot or Slot(available_cores())
        log, arguments = folder.log(self.name), command(folder, self.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as output:
            output.write(f"{shlex.join(arguments)}\non cores {slot.cores}, gpus {slot.gpus}\n")
            output.flush()
            self._process = subprocess.Popen(
                [sys.executable, child.__file__, ",".join(map(str, slot.cores)), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | slot.environment(),
                pass_fds=held,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on.
            )
        if self._stopped:
            self._process.terminate()
        if code := self._process.wait():
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return CAUSES.get(code, killed)
        folder.finish(self.name, time.monotonic() - started, len(slot.cores))
        return None

    def stop(self) -> None:
        """Asks the run to save and stop, and the second time to stop at once."""
        self._stopped = True
        if self._process:
            self._process.terminate()

    def checkpoint(self) -> Any:
        """Called by submitit before a preemption or time limit: saves, and asks to be requeued."""
        import submitit

        self.stop()
        # A signal handler calls this during the process's own wait(), which would block another.
        with contextlib.suppress(ChildProcessError, AttributeError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.root, self.name))


@contextlib.contextmanager
def local(
    folder: Folder, names: list[str], shares: list[Slot], lock: int
) -> Iterator[dict[str, futures.Future]]:
    """Trains on this machine, one run in each slot, in the order given; stops them on leaving.

    The context is a future of each run, by name: what went wrong, or None. The runs hold the file
    `lock` too.
    """
    jobs, free, here = [Job(str(folder.root), name) for name in names], [*shares], threading.local()
    # Linux ends a process with the thread that started it; here a thread waits for its processes.
    pool = futures.ThreadPoolExecutor(
        len(shares), initializer=lambda: setattr(here, "slot", free.pop(0))
    )
    try:
        yield {job.name: pool.submit(lambda job=job: job(here.slot, lock)) for job in jobs}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        with contextlib.ExitStack() as at_once:  # At Ctrl-C while runs save.
            for job in jobs:
                at_once.callback(job.stop)
                job.stop()
            pool.shutdown()


@contextlib.contextmanager
def slurm(
    folder: Folder, names: list[str], parallel: int | None, parameters: str
) -> Iterator[dict[str, Any]]:
    """Trains as jobs of submitit, which stay on leaving; the same sweep finds them again.

    The context is a job of each run, by name. `parameters` are submitit's, as in
    "timeout_min=240,gpus_per_node=1".
    """
    import submitit  # Here, as it configures logging.

    ids = folder.root / "jobs.json"
    known = files.read_json(ids) if ids.exists() else {}
    try:
        executor = submitit.AutoExecutor(folder.root / "slurm", cluster="slurm")
        given = dict(part.split("=", 1) for part in parameters.split(",") if part)
        given = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
        limit = {"slurm_array_parallelism": parallel} if parallel else {}
        executor.update_parameters(**given, **limit)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"SLURM can't be used here, or not with --slurm={parameters!r}: {error}. The parameters"
            " are submitit's, as in timeout_min=240,gpus_per_node=1; --launcher=local needs none"
        ) from None
    earlier = {n: executor.job_class(executor.folder, known[n]) for n in names if n in known}
    jobs = {name: job for name, job in earlier.items() if not job.done()}
    with executor.batch():
        for name in [name for name in names if name not in jobs]:
            jobs[name] = executor.submit(Job(str(folder.root), name))
    files.write_json(ids, known | {name: job.job_id for name, job in jobs.items()})
    yield jobs


def follow(
    schedule: list[Scheduled], folder: Folder, jobs: dict[str, Any], csv: pathlib.Path
) -> dict[str, str]:
    """Waits for jobs, and adds each that finishes to the table of results, the file `csv`.

    Returns:
      What went wrong, by run.

    Raises:
      Interrupted: SIGTERM or Ctrl-C came.
    """
    errors, pending, shown = {}, dict(jobs), time.monotonic()
    with Signals("stopping the sweep") as interrupted, writers.console.status("starting") as status:
        while pending:
            for name in [name for name, job in pending.items() if job.done()]:
                job = pending.pop(name)
                errors[name] = str(job.exception() or "") or job.result()
                writers.say(folder.outcome(name, errors[name]))
                folder.write_results(schedule, csv)
            if interrupted():
                raise Interrupted(
                    f"stopped by {interrupted.name} with {len(pending)} of {len(schedule)} runs to "
                    "do; run the same command again to go on"
                )
            if time.monotonic() - shown > EVERY:
                text, shown = folder.progress(schedule, list(pending)), time.monotonic()
                status.update(text) if writers.ON_TERMINAL else writers.say(text)
            time.sleep(0.1)
    return {name: error for name, error in errors.items() if error}
