"""How every command starts and ends: quiet logs, the compilation cache, exit codes.

Exit codes:
  0: done.
  1: some runs or weight files failed, some images could not be read, or the last checkpoint of a
    run could not be saved.
  2: bad input, explained in one message.
  3: the loss was not finite.
  75: interrupted after saving a checkpoint, or by SIGTERM before the first step; the same command
    resumes (EX_TEMPFAIL: a scheduler may requeue it).
  130: Ctrl-C with nothing to save yet, or pressed twice.
  141: the output is no longer read, as after `| head`; SIGPIPE gives other commands the same code.

In a run of several processes, 75 also means that a process was lost or stuck; if it was process 0,
JAX may abort the others (134, SIGABRT). An error in one process ends the others with its code.
"""

import contextlib
import importlib.util
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from effnet_jax import errors
from effnet_jax.errors import UserError
from effnet_jax.run import files
from effnet_jax.run.workers import has_abandoned

DONE, FAILED, BAD_INPUT, NOT_FINITE, INTERRUPTED, STOPPED = 0, 1, 2, 3, errors.RETRY, 130
NO_READER = 141
# The exit code of each error, and whether only one process of a run gets it and ends the others.
ENDS = {
    UserError: (BAD_INPUT, True),
    errors.SaveFailed: (FAILED, True),
    errors.RunsFailed: (FAILED, False),
    errors.ImagesFailed: (FAILED, False),
    errors.NonFiniteLossError: (NOT_FINITE, False),
    errors.StoppedEarly: (INTERRUPTED, True),
    errors.Interrupted: (INTERRUPTED, False),
}


def tune_process() -> None:
    """Restarts this process with settings for computing on a CPU, unless it has them already.

    Glibc and JAX read the settings when a process starts. Accelerators do not need them.
    """
    if any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu"))):
        return
    # XLA allocates the temporary memory of a program at every call, a gigabyte for B0 at batch 16.
    # With small pages, page faults take a third of a training step.
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        settings = {"GLIBC_TUNABLES": f"{tunables}:glibc.malloc.hugetlb=1".removeprefix(":")}
        # XLA's CPU backend logs kilobytes about two tuning flags for every program from the
        # compilation cache. Real failures are raised. 1 is the value that JAX sets.
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
            settings["TF_CPP_MIN_LOG_LEVEL"] = "3"
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})


def use_compilation_cache() -> None:
    """Enables JAX's compilation cache, by default in ~/.cache/effnet_jax/compiled."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def _exit_codes(processes: Any = None) -> Iterator[None]:
    """Turns errors into a message and an exit code.

    `processes` are those of the run; None for a command that does not join a run.
    """
    code, message, alone = DONE, "", False
    try:
        yield
    except tuple(ENDS) as error:
        code, alone = next(end for kind, end in ENDS.items() if isinstance(error, kind))
        message = str(error) if code == INTERRUPTED else f"error: {error}"
    except KeyboardInterrupt:
        code, alone = STOPPED, True
        message = "stopped at once by Ctrl-C; the checkpoints are unchanged"
    except Exception as error:
        if processes is None or processes.count == 1:
            raise
        code, message, alone = FAILED, f"error: {error}", True
        # A collective fails with various errors when another process is gone.
        if lost := processes.who_is_lost(error):
            code = INTERRUPTED
            message = f"error: {lost}. Run the same command on every machine to resume"
        else:
            traceback.print_exc()
    if code:
        print(f"{processes.prefix if processes else ''}{message}", file=sys.stderr)
    # After a signal or a bad loss, every process ends by itself.
    if processes:
        processes.leave(code if alone else DONE, message)
    if code and has_abandoned():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    if code:
        sys.exit(code)


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Ends a command quietly if its output is no longer read; opens streams that were closed."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # The lowest free one: that of the stream.
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # File names can have any encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _silence():
            raise
        sys.exit(NO_READER)


def _silence() -> bool:
    """Returns whether stdout or stderr has lost its reader; sends such a stream to /dev/null."""
    poll = select.poll()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # Tests and notebooks replace the streams by objects.
            poll.register(file.fileno(), 0)  # Reports errors only.
    gone = [descriptor for descriptor, _ in poll.poll(0)]
    for descriptor in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def run(main: Callable[[Any], None], parser: Any, arguments: list[str] | None = None) -> None:
    """Runs a command, and turns its errors into a message and an exit code.

    `parser` is a `flags.Parser`; `arguments` are those of the command line by default.
    """
    with output():
        _run(main, parser, arguments)


def _run(main: Callable[[Any], None], parser: Any, arguments: list[str] | None) -> None:
    if parser.computes:
        tune_process()
    logging.set_verbosity(logging.ERROR)
    # Orbax raises its errors, and also logs them with a traceback.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    processes = None
    with _exit_codes():
        args = parser.parse_args(arguments)
        use_compilation_cache()
        if parser.joins:
            from effnet_jax.run.processes import join

            place = args.coordinator_address, args.num_processes, args.process_id
            args.processes = processes = join(*place, parser.start_seconds(args))
    with _exit_codes(processes):
        main(args)
