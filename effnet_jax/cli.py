"""How every command starts and ends: flags, quiet logs, the compilation cache, exit codes.

Exit codes: 0 done; 1 some runs of a sweep failed, some images could not be read, or a run's last
checkpoint could not be saved; 2 bad input, told in one message; 3 the loss was not finite; 75
interrupted, a checkpoint was saved and the same command goes on with it (EX_TEMPFAIL: a scheduler
may requeue); 130 Ctrl-C where there was nothing to save yet, or pressed a second time.

In a run of several processes, 75 also means that a process was lost or stuck: the same command on
all of them resumes from the last checkpoint. If process 0 is lost, JAX may notice first and abort
the others (134, SIGABRT). An error that ends one process ends the others, with the same code.
"""

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from effnet_jax.data.sources import cache_dir
from effnet_jax.errors import (
    RETRY,
    ImagesFailed,
    Interrupted,
    NonFiniteLossError,
    RunsFailed,
    SaveFailed,
    UserError,
)

DONE, FAILED, BAD_INPUT, NOT_FINITE, INTERRUPTED, STOPPED = 0, 1, 2, 3, RETRY, 130


def tune_process() -> None:
    """Starts this process again with settings for computing on a CPU, unless it has them.

    They are read when a process starts, or when JAX is imported. Nothing happens where JAX has an
    accelerator to run on, and nothing but glibc knows the first.
    """
    if any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu"))):
        return
    # XLA allocates a program's temporary memory, a gigabyte for B0 at batch 16, anew at every call:
    # with small pages, faulting it in takes a third of a training step.
    huge_pages = "glibc.malloc.hugetlb=1"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        settings = {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, huge_pages)))}
        # When a program comes out of the compilation cache, XLA's CPU backend logs kilobytes about
        # two tuning flags that no processor "supports"; real failures are raised.
        settings["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs; $JAX_COMPILATION_CACHE_DIR chooses another place."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def define_process_flags() -> None:
    """The three flags that make a process one of many; `_join` reads them."""
    flags.DEFINE_string(
        "coordinator_address", None, "Many hosts: HOST:PORT of process 0; a pod, SLURM: by itself."
    )
    flags.DEFINE_integer("num_processes", None, "Many hosts: how many processes there are.")
    flags.DEFINE_integer("process_id", None, "Many hosts: which of them this is, from 0.")


def _join():
    """The processes of this run, by the flags, or found where a cluster started them."""
    from effnet_jax.run import processes

    values = flags.FLAGS
    return processes.join(values.coordinator_address, values.num_processes, values.process_id)


@contextlib.contextmanager
def _exit_codes(processes: Any = None) -> Iterator[None]:
    """Ends with a message and a code; `processes` are the run's, None for a command on its own."""
    code, message, alone = DONE, "", False
    try:
        yield
    except UserError as error:
        code, message, alone = BAD_INPUT, f"error: {error}", True
    except SaveFailed as error:
        code, message, alone = FAILED, f"error: {error}", True
    except (RunsFailed, ImagesFailed) as error:
        code, message = FAILED, f"error: {error}"
    except NonFiniteLossError as error:
        code, message = NOT_FINITE, f"error: {error}"
    except Interrupted as error:
        code, message = INTERRUPTED, str(error)
    except KeyboardInterrupt:
        code, alone = STOPPED, True
        message = "stopped at once, by Ctrl-C; checkpoints are as they were"
    except Exception as error:
        if processes is None or processes.count == 1:
            raise
        code, message, alone = FAILED, f"error: {error}", True
        # A collective fails in many ways where another process is gone.
        if lost := processes.who_is_lost(error):
            code = INTERRUPTED
            message = f"error: {lost}. Run the same command on every machine to resume"
        else:
            traceback.print_exc()
    if code:
        print(f"{processes.prefix if processes else ''}{message}", file=sys.stderr)
    # After a signal or a bad loss, all processes come to the same end by themselves.
    if processes:
        processes.leave(code if alone else DONE, message)
    if code:
        sys.exit(code)


def run(main: Callable[..., None], computes: bool = True, joins: bool = False) -> None:
    """Runs a command's `main`, and turns the errors meant for people into a message and a code.

    Args:
      main: the command.
      computes: whether it runs anything on a device.
      joins: whether it can be one of several processes; `main` is then given them.
    """
    if computes:
        tune_process()
    logging.set_verbosity(logging.ERROR)
    # What Orbax can't do it raises, and logs with its traceback as well.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    use_compilation_cache()
    if not joins:
        with _exit_codes():
            main()
        return
    with _exit_codes():
        processes = _join()
    with _exit_codes(processes):
        main(processes)


def run_with_flags(
    main: Callable[..., None],
    default_config: str | None = None,
    computes: bool = True,
    joins: bool = False,
) -> None:
    """As `run`, after absl flags were read from the command line.

    Args:
      main: the command.
      default_config: value of --config where the command line has none.
      computes, joins: as for `run`.
    """
    tune_process()
    with _exit_codes():
        has_config = any(arg == "--config" or arg.startswith("--config=") for arg in sys.argv)
        if default_config and not has_config:
            # Not as the flag's default: overrides of that are checked while modules are imported,
            # where nothing could turn a wrong one into a message.
            sys.argv.insert(1, f"--config={default_config}")
        for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
            path = following if argument == "--config" else argument.partition("--config=")[2]
            if path and not os.path.isfile(path.partition(":")[0]):
                raise UserError(f"no config file {path.partition(':')[0]}")
        app.define_help_flags()
        try:
            left = flags.FLAGS(sys.argv)[1:]
            for name in flags.FLAGS:
                hasattr(flags.FLAGS[name].value, "lock")  # Raises for a config that wasn't loaded.
        except Exception as error:
            raise UserError(explain(error)) from None
        if left:
            raise UserError(f"unexpected argument {left[0]!r}; flags are --name=value. Try --help")
    run(main, computes, joins)


def explain(error: Exception) -> str:
    """What is wrong with the command line, out of what absl and ml_collections raise for it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if error.args else error).strip()
    if "Error whilst parsing config file" in text:
        # A traceback as text. Of our own errors the message is enough; a config's bug stays whole.
        return text.rpartition("UserError: ")[2]
    if isinstance(error, AttributeError | KeyError):
        hint = "" if "Did you mean" in text else "; effnet_jax/config.py has every key"
        return f"unknown config key {'. '.join(text.split(chr(10)))}{hint}"
    return f"{text}\nTry --help"
