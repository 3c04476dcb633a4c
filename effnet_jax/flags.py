"""The flags of commands, with `--config` and its overrides."""

import argparse
import contextlib
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from effnet_jax.errors import UserError
from effnet_jax.run.buckets import is_bucket, to_path
from effnet_jax.run.files import check_local


def _expand_home(value: Any) -> Any:
    """A path with the home directory in place of ~: a shell leaves the one in --csv=~/rows.csv."""
    is_path = isinstance(value, str | pathlib.Path) and str(value).startswith("~")
    return type(value)(os.path.expanduser(value)) if is_path else value


class Parser(argparse.ArgumentParser):
    """The flags of a command, whose docstring is `doc`.

    `config` is the experiment without --config; None: the command takes no config. A command that
    `computes` runs something on a device; one that `joins` can be one of several processes, which
    `cli.run` adds as `args.processes`. `buckets` are the flags that may be addresses in buckets.
    """

    def __init__(
        self,
        doc: str,
        config: str | None = None,
        computes: bool = True,
        joins: bool = False,
        buckets: Collection[str] = (),
    ):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=formatter, allow_abbrev=False)
        self.config, self.computes, self.joins = config, computes, joins
        self._buckets = buckets
        if config:
            text = "NAME of configs/, FILE.py, FILE.py:ARGUMENT, FILE.json or a workdir; by default"
            change = "--config.KEY=VALUE changes a value"
            self.add_argument("--config", metavar="EXPERIMENT", help=f"{text} {config}. {change}")
        if joins:
            self.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
            self.add_argument("--num_processes", type=int, metavar="N", help="in this run")
            self.add_argument("--process_id", type=int, metavar="I", help="of this one, from 0")

    def format_help(self) -> str:
        """What argparse shows, and the keys of a config with their defaults."""
        if not self.config:
            return super().format_help()
        from flax.traverse_util import flatten_dict

        from effnet_jax import config

        values = flatten_dict(config.get_config().to_dict(), sep=".")
        lines = (f"  --config.{key}={value}" for key, value in values.items())
        title = "config keys with their defaults; effnet_jax/config.py explains each:"
        return "\n".join([super().format_help(), title, *lines, ""])

    def error(self, message: str) -> None:
        raise UserError(f"{message}. Try --help")

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        """The flags; `config` is the config itself, and `experiment` the text that chose it."""
        args, rest = self.parse_known_args(args, namespace)
        names = {each.dest: (each.option_strings or [each.dest])[0] for each in self._actions}
        for key, value in vars(args).items():
            several = isinstance(value, list)
            expanded = [_expand_home(each) for each in (value if several else [value])]
            setattr(args, key, expanded if several else expanded[0])
            for each in expanded:
                # An image that can't be read does not stop the others; predict reports it.
                is_path = key not in ("coordinator_address", "images")
                in_bucket = key in self._buckets and is_bucket(each)
                if is_path and not in_bucket and not str(each).startswith("hf://"):
                    check_local(names.get(key, key), each)
        if not self.config:
            return self.error(f"unexpected argument {rest[0]!r}") if rest else args
        from effnet_jax import experiments  # With JAX, for a process that has its settings.

        if not args.config and not experiments.experiments():
            self.error("give --config=FILE; there is no folder configs here")
        args.experiment = args.config or self.config
        args.config = override(experiments.read(args.experiment), rest)
        return args

    def start_seconds(self, args: Any) -> float:
        """How long to wait for other processes, by the config or that of the run in --workdir."""
        from effnet_jax import config as config_lib

        if self.config:
            config_lib.validate(args.config)  # A mistake is reported before the wait.
            return args.config.processes.start_seconds
        workdir = getattr(args, "workdir", None) or ""
        config = config_lib.load_if_any(workdir) or config_lib.get_config()
        return config.processes.start_seconds


def path(text: str) -> pathlib.Path:
    """The type of a flag that is a path, local or in a bucket."""
    try:
        return to_path(text)
    except UserError as error:  # A ValueError, whose text argparse would drop.
        raise argparse.ArgumentTypeError(str(error)) from None


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


@contextlib.contextmanager
def _none_unsets() -> Iterator[None]:
    """Makes ml_collections read None for a number or a text, until the context is left."""
    parsers = config_flags.config_flags._FIELD_TYPE_TO_PARSER  # Of the whole process.
    before = dict(parsers)
    for kind in (int, float, str):
        config_flags.register_flag_parser_for_type(kind, _OrNone(kind))
    try:
        yield
    finally:
        parsers.update(before)


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Locks a config after changing it by arguments like --config.optimizer.name=sgd.

    A value is read by the type of the one that it replaces; None unsets it. Raises UserError for an
    unknown key, a value of another type, or any other argument.
    """
    from effnet_jax import config as config_lib

    given = {argument.partition("=")[0].removeprefix("--config.") for argument in arguments}
    arguments = [*arguments, *(f"--config.{key}=None" for key in config_lib.replaced(given))]
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        with _none_unsets():
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
