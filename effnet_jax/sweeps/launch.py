"""Start the runs of a sweep, on this machine or on SLURM, and wait until the last one ends."""

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

EVERY = 1.0 if writers.ON_TERMINAL else 60.0  # Seconds between reports of progress.
CAUSES = {2: "bad input", 3: "the loss was not finite", cli.INTERRUPTED: "interrupted, and saved"}
# XLA reads NPROC. The libraries that NumPy and OpenCV are built with read the others.
THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def command(folder: Folder, name: str) -> list[str]:
    """The command that trains one run; it also works in a shell."""
    arguments = [f"--config={folder.config(name)}", f"--workdir={folder.workdir(name)}"]
    return [sys.executable, "-m", "effnet_jax", "train", *arguments]


class Slot(NamedTuple):
    """A share of this machine: cores, and GPUs if JAX can use any."""

    cores: list[int]
    gpus: str | None = None

    def environment(self) -> dict[str, str]:
        gpus = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}
        return dict.fromkeys(THREADS, str(len(self.cores))) | gpus


def visible_gpus() -> list[str]:
    """The numbers of the GPUs that runs can use; empty if JAX is installed without CUDA."""
    has_cuda = any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")))
    if has_cuda and "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    if not has_cuda or not shutil.which("nvidia-smi"):
        return []
    lines = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number in range(len(lines.splitlines()))]


def slots(parallel: int | None) -> list[Slot]:
    """Divide the machine among `parallel` runs; by default, one per GPU, or else one per core.

    Two runs on the same cores slow each other down by more than half. Training a small network is
    most efficient on a single core, since no time is spent on waiting for other threads.
    """
    cores, gpus = available_cores(), visible_gpus()
    runs = parallel or len(gpus) or len(cores)
    if runs > len(cores):
        raise UserError(f"--parallel={runs} is more than the {len(cores)} available cores")
    if gpus and runs > len(gpus):
        raise UserError(f"--parallel={runs} is more than the {len(gpus)} GPUs: one run each")
    size, each = len(cores) // runs, len(gpus) // runs
    shares = [(cores[i * size :][:size], gpus[i * each :][:each]) for i in range(runs)]
    return [Slot(some, ",".join(ids) if gpus else None) for some, ids in shares]


class Job:
    """One run as a process. It can be pickled, so that submitit can call it on a SLURM machine."""

    def __init__(self, root: str, name: str):
        self.root, self.name = root, name
        self._process, self._stopped = None, False

    def __call__(self, slot: Slot | None = None, *held: int) -> str | None:
        """Train in a slot with the files `held` open; return the cause of a failure, or None."""
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
                start_new_session=True,  # Only the sweep receives Ctrl-C, and stops the run.
            )
        if self._stopped:
            self._process.terminate()
        if code := self._process.wait():
            killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return CAUSES.get(code, killed)
        folder.finish(self.name, time.monotonic() - started, len(slot.cores))
        return None

    def stop(self) -> None:
        """Ask the run to save and stop. A second call makes it stop at once."""
        self._stopped = True
        if self._process:
            self._process.terminate()

    def checkpoint(self) -> Any:
        """Save and ask to be requeued. submitit calls this before a preemption or time limit."""
        import submitit

        self.stop()
        # A signal handler calls this during the process's wait(); a second wait() would block.
        with contextlib.suppress(ChildProcessError, AttributeError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.root, self.name))


@contextlib.contextmanager
def local(
    folder: Folder, names: list[str], shares: list[Slot], lock: int
) -> Iterator[dict[str, futures.Future]]:
    """Train on this machine, one run at a time in each slot, in order; stop the runs on exit.

    The context value has a future for each run by name, whose result is the cause of a failure, or
    None. The runs also hold the file descriptor `lock`.
    """
    jobs, free, here = [Job(str(folder.root), name) for name in names], [*shares], threading.local()
    # Linux signals a run when the thread that started it ends, so each thread waits for its runs.
    pool = futures.ThreadPoolExecutor(
        len(shares), initializer=lambda: setattr(here, "slot", free.pop(0))
    )
    try:
        yield {job.name: pool.submit(lambda job=job: job(here.slot, lock)) for job in jobs}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        with contextlib.ExitStack() as at_once:  # Ctrl-C while runs save stops them at once.
            for job in jobs:
                at_once.callback(job.stop)
                job.stop()
            pool.shutdown()


@contextlib.contextmanager
def slurm(
    folder: Folder, names: list[str], parallel: int | None, parameters: str
) -> Iterator[dict[str, Any]]:
    """Train as submitit jobs, which continue after exit and which the same sweep finds again.

    The context value has a job for each run by name. `parameters` are those of submitit, for
    example "timeout_min=240,gpus_per_node=1".
    """
    import submitit  # Imported only if used, because it configures logging.

    ids = folder.root / "jobs.json"
    known = files.read_json(ids) if ids.exists() else {}
    try:
        executor = submitit.AutoExecutor(folder.root / "slurm", cluster="slurm")
        values = dict(part.split("=", 1) for part in parameters.split(",") if part)
        values = {key: int(value) if value.isdecimal() else value for key, value in values.items()}
        limit = {"slurm_array_parallelism": parallel} if parallel else {}
        executor.update_parameters(**values, **limit)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"SLURM can't be used here, or not with --slurm={parameters!r}: {error}. Use parameters"
            " of submitit, such as timeout_min=240,gpus_per_node=1, or use --launcher=local"
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
    """Wait for jobs, and add each one that finishes to the table of results, the file `csv`.

    Returns:
      The causes of failures by run.

    Raises:
      Interrupted: this process received SIGTERM or Ctrl-C.
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
                    "do; run the same command again to continue"
                )
            if time.monotonic() - shown > EVERY:
                text, shown = folder.progress(schedule, list(pending)), time.monotonic()
                status.update(text) if writers.ON_TERMINAL else writers.say(text)
            time.sleep(0.1)
    return {name: error for name, error in errors.items() if error}
