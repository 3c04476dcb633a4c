"""How every command starts and ends: flags, quiet logs, the compilation cache, exit codes.

Exit codes: 0 done; 1 some runs of a sweep failed, some images could not be read, or a run's last
checkpoint could not be saved; 2 bad input, told in one message; 3 the loss was not finite; 75
interrupted, a checkpoint was saved and the same command goes on with it (EX_TEMPFAIL: a scheduler
may requeue); 130 Ctrl-C where there was nothing to save yet, or pressed a second time.

Of a run on many hosts, 75 is also that a host was lost or stuck: the same command on all of them
goes on from the last checkpoint. Where host 0 is the one, JAX may be faster to notice, and aborts
the others (134, SIGABRT). What ends one host alone ends the others, with the same code.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

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


class Parser(argparse.ArgumentParser):
    """The flags of a command, and how it has to be started.

    Attributes:
      config: the experiment that the command takes without --config; None: it takes no config.
      computes: whether it runs anything on a device.
      joins: whether it can be one of several processes, which `run` adds as `args.processes`.
    """

    def __init__(
        self, doc: str, config: str | None = None, computes: bool = True, joins: bool = False
    ):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.config, self.computes, self.joins = config, computes, joins
        if config:
            self.add_argument(
                "--config",
                metavar="EXPERIMENT",
                help="NAME of configs/, FILE.py, FILE.py:ARGUMENT, a saved FILE.json or a workdir; "
                f"by default {config}. --config.KEY=VALUE changes a value",
            )
        if joins:
            add = self.add_argument_group("several processes; found in a pod or SLURM").add_argument
            add("--coordinator_address", metavar="HOST:PORT", help="of process 0")
            add("--num_processes", type=int, metavar="N", help="how many processes there are")
            add("--process_id", type=int, metavar="N", help="the number of this one, from 0")

    def error(self, message: str) -> None:
        """Raises UserError, where argparse would exit."""
        raise UserError(f"{message}. Try --help")

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        """The flags; `config` is then the config itself, and `experiment` the text that named it."""
        args, rest = self.parse_known_args(args, namespace)
        if self.config is None:
            if rest:
                self.error(f"unexpected argument {rest[0]!r}")
            return args
        args.experiment = args.config or self.config
        try:
            config = read_config(args.experiment)
        except UserError as error:
            raise error if args.config else UserError(f"give --config=FILE: {error}") from None
        args.config = override(config, rest)
        return args


def count(text: str) -> int:
    """The type of a flag that takes a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number, 1 or more")
    return int(text)


def read_config(experiment: str) -> ConfigDict:
    """The config of an experiment, or one that was saved.

    Args:
      experiment: NAME (of configs/) or FILE.py, with :ARGUMENT for its `get_config`; FILE.json or
        a workdir, with :MODEL for that model by the file's own base and coefficients, as in
        scaling.json:phi=2.
    """
    from effnet_jax import config as config_lib

    name, _, argument = experiment.partition(":")
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".json" and not (path / config_lib.FILE).is_file():
        get_config = config_lib.find("", "config", name, "get_config")
        return get_config(argument) if argument else get_config()
    config = config_lib.load(path)
    return config_lib.rescale(config, argument) if argument else config


class _OrNone(flags.ArgumentParser):
    """Reads None, which unsets a value, besides what the parser of a type reads."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._parser.parse(argument)


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Locks a config after changing it by arguments like --config.optimizer.name=sgd.

    A value is read by the type of the one that it replaces.

    Raises:
      UserError: an unknown key, a value of another type, or any other argument.
    """
    values = flags.FlagValues()
    kinds = {int: flags.IntegerParser(), float: flags.FloatParser(), str: flags.ArgumentParser()}
    for kind, parser in kinds.items():
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["", *arguments]
        )
        left = values(["", *arguments])[1:]
    except Exception as error:
        raise UserError(explain(error)) from None
    if left:
        raise UserError(f"unexpected argument {left[0]!r}; flags are --name=value. Try --help")
    return config


def explain(error: Exception) -> str:
    """What is wrong with the command line, from what absl and ml_collections raise for it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if error.args else error).strip()
    if isinstance(error, AttributeError | KeyError):
        hint = "" if "Did you mean" in text else "; effnet_jax/config.py has every key"
        return f"unknown config key {'. '.join(text.split(chr(10)))}{hint}"
    return f"{text}. Try --help"


@contextlib.contextmanager
def _exit_codes(processes: Any = None) -> Iterator[None]:
    """Ends with a message and a code; `processes` are those of the run, None for one alone."""
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
        if lost := processes.who_is_lost(
            error
        ):  # A collective fails in many ways where one is gone.
            code, message = (
                INTERRUPTED,
                f"error: {lost}. Run the same command on every machine to go on",
            )
        else:
            traceback.print_exc()
    if code:
        print(f"{processes.prefix if processes else ''}{message}", file=sys.stderr)
    # Where a signal or the loss is the reason, all processes come to the same end by themselves.
    if processes:
        processes.leave(code if alone else DONE, message)
    if code:
        sys.exit(code)


def run(
    main: Callable[[Any], None], parser: Parser, arguments: list[str] | None = None
) -> None:
    """Runs a command, and turns the errors meant for people into a message and a code.

    Args:
      main: the command; takes the parsed arguments.
      parser: its flags.
      arguments: by default the command line's.
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
            from effnet_jax.run import processes as joining

            processes = args.processes = joining.join(
                args.coordinator_address, args.num_processes, args.process_id
            )
    with _exit_codes(processes):
        main(args)
