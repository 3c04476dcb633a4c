"""How every command starts and ends: flags, quiet logs, the compilation cache, exit codes.

Exit codes: 0 done; 1 some runs of a sweep failed, some images could not be read, or a run's last
checkpoint could not be saved; 2 bad input, explained in one message; 3 the loss was not finite; 75
interrupted after saving a checkpoint, from which the same command resumes (EX_TEMPFAIL: a scheduler
may requeue); 130 Ctrl-C with nothing to save yet, or pressed a second time.

In a run of several processes, 75 also means that a process was lost or stuck: the same command on
all machines resumes from the last checkpoint. If it was process 0, JAX may notice first and abort
the others (134, SIGABRT). An error of one process ends the others with the same code.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from effnet_jax import errors
from effnet_jax.data.sources import cache_dir
from effnet_jax.errors import UserError

DONE, FAILED, BAD_INPUT, NOT_FINITE, INTERRUPTED, STOPPED = 0, 1, 2, 3, errors.RETRY, 130
# The code of each error, and whether it comes to one process of a run and not to all by themselves.
ENDS = {
    UserError: (BAD_INPUT, True),
    errors.SaveFailed: (FAILED, True),
    errors.RunsFailed: (FAILED, False),
    errors.ImagesFailed: (FAILED, False),
    errors.NonFiniteLossError: (NOT_FINITE, False),
    errors.Interrupted: (INTERRUPTED, False),
}


def tune_process() -> None:
    """Starts this process again with settings for computing on a CPU, unless it has them.

    They are read when a process starts, or when JAX is imported. Nothing happens where JAX has an
    accelerator to run on, and nothing but glibc knows the first.
    """
    if any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu"))):
        return
    # XLA allocates a program's temporary memory, a gigabyte for B0 at batch 16, at every call: with
    # small pages, faulting it in takes a third of a training step.
    huge_pages = "glibc.malloc.hugetlb=1"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        settings = {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, huge_pages)))}
        # When a program comes out of the compilation cache, XLA's CPU backend logs kilobytes about
        # two tuning flags that no processor "supports"; real failures are raised. JAX sets 1.
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
            settings["TF_CPP_MIN_LOG_LEVEL"] = "3"
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs; $JAX_COMPILATION_CACHE_DIR chooses another place."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class Parser(argparse.ArgumentParser):
    """The flags of a command.

    Args:
      doc: the command's docstring, for --help.
      config: the experiment that is taken without --config; None: the command takes no config.
      computes: whether the command runs anything on a device.
      joins: whether it can be one of several processes, which `run` adds as `args.processes`.
    """

    def __init__(
        self, doc: str, config: str | None = None, computes: bool = True, joins: bool = False
    ):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=formatter, allow_abbrev=False)
        self.config, self.computes, self.joins = config, computes, joins
        if config:
            text = "NAME of configs/, FILE.py, FILE.py:ARGUMENT, FILE.json or a workdir; by default"
            change = "--config.KEY=VALUE changes a value"
            self.add_argument("--config", metavar="EXPERIMENT", help=f"{text} {config}. {change}")
        if joins:
            self.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
            self.add_argument("--num_processes", type=int, metavar="N", help="in this run")
            self.add_argument("--process_id", type=int, metavar="I", help="of this one, from 0")

    def error(self, message: str) -> None:
        raise UserError(f"{message}. Try --help")

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        """The flags; `config` is the config itself, and `experiment` the text that chose it."""
        args, rest = self.parse_known_args(args, namespace)
        if not self.config:
            return self.error(f"unexpected argument {rest[0]!r}") if rest else args
        from effnet_jax import config as config_lib

        if not args.config and not config_lib.experiments():
            self.error("give --config=FILE; there is no folder configs here")
        args.experiment = args.config or self.config
        args.config = override(config_lib.read(args.experiment), rest)
        return args


def count(text: str) -> int:
    """The type of a flag that takes a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, 1 or more")
    return int(text)


class _OrNone(flags.ArgumentParser):
    """Reads None, which unsets a value, and values of one type."""

    def __init__(self, kind: type):
        self._kind = kind

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._kind(argument)


for kind in (int, float, str):
    config_flags.register_flag_parser_for_type(kind, _OrNone(kind))


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Locks a config after changing it by arguments like --config.optimizer.name=sgd.

    A value is read by the type of the one that it replaces; None unsets it.

    Raises:
      UserError: an unknown key, a value of another type, or any other argument.
    """
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
    except Exception as error:  # Of many kinds.
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        text = str(error.args[0] if error.args else error).strip()
        if not isinstance(error, AttributeError | KeyError):
            raise UserError(f"{text}. Try --help") from None
        hint = "" if "Did you mean" in text else "; effnet_jax/config.py has every key"
        raise UserError(f"unknown config key {'. '.join(text.splitlines())}{hint}") from None
    if left:
        raise UserError(f"unexpected argument {left[0]!r}; flags are --name=value. Try --help")
    return config


@contextlib.contextmanager
def _exit_codes(processes: Any = None) -> Iterator[None]:
    """Ends with a message and a code; `processes` are the run's, None for a command on its own."""
    code, message, alone = DONE, "", False
    try:
        yield
    except tuple(ENDS) as error:
        code, alone = next(end for kind, end in ENDS.items() if isinstance(error, kind))
        message = str(error) if code == INTERRUPTED else f"error: {error}"
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


def run(main: Callable[[Any], None], parser: Parser, arguments: list[str] | None = None) -> None:
    """Runs a command, and turns the errors meant for people into a message and a code.

    Args:
      main: the command; takes the parsed arguments.
      parser: its flags.
      arguments: by default those of the command line.
    """
    if parser.computes:
        tune_process()
    logging.set_verbosity(logging.ERROR)
    # What Orbax can't do it raises, and logs with its traceback as well.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    processes = None
    with _exit_codes():
        args = parser.parse_args(arguments)
        use_compilation_cache()
        if parser.joins:
            from effnet_jax.run.processes import join

            address, count, index = args.coordinator_address, args.num_processes, args.process_id
            args.processes = processes = join(address, count, index)
    with _exit_codes(processes):
        main(args)
