"""Command-line flags: their help, and `--config` with its overrides."""

import argparse
import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from effnet_jax.errors import UserError
from effnet_jax.run.buckets import is_bucket, to_path
from effnet_jax.run.files import check_local

PROCESSES = "several processes (not needed where a cluster starts them)"
# Flags of several commands: a metavar, and how the help begins in each of them.
SHARED = {
    "--batch": ("N", "images in a batch"),
    "--classes": ("CLASSES", "names of the outputs"),
    "--csv": ("FILE", "CSV file to add the rows to"),
    "--data": ("SET", "data set"),
    "--data_dir": ("DIR", "folder of the data"),
    "--dry_run": (None, "only show what would be done"),
    "--dtype": ("DTYPE", "dtype of the computation: float32 or bfloat16"),
    "--evaluation": ("NAME/WEIGHTS", "evaluation and weights whose top-1 counts"),
    "--json": (None, "print JSON"),
    "--layer": ("LAYER", "layer of the network"),
    "--method": ("METHOD", "kind of activation map"),
    "--model": ("MODEL", "model, such as b0 or v2-s"),
    "--models": ("MODEL", "models, such as b0 or v2-s"),
    "--num_images": ("N", "number of images"),
    "--origin": ("ORIGIN", "program that wrote the weights"),
    "--out": ("DIR", "where to write"),
    "--overwrite": (None, "replace existing files"),
    "--repeats": ("N", "timed repeats"),
    "--resolution": ("PIXELS", "side of the images in pixels"),
    "--to": ("FILE", "file to write"),
    "--top": ("N", "number of most probable classes"),
    "--turns": ("N", "turns that each takes"),
    "--weights": ("FILE|WORKDIR", "weights to use"),
    "--workdir": ("DIR", "folder of the run or sweep"),
    "images": (
        "IMAGE",
        "images: files, folders, patterns with *, ** or ?, or - for stdin",
    ),
}


def _expand_home(value: Any) -> Any:
    """Replaces a leading ~ in a path: shells do not expand the one in --csv=~/rows.csv."""
    is_path = isinstance(value, str | pathlib.Path) and str(value).startswith("~")
    return type(value)(os.path.expanduser(value)) if is_path else value


def _add(group: Any, name: str, help: str = "", **options: Any) -> None:
    """Adds a flag to a group; if it is in SHARED, `help` continues the help that is there."""
    metavar, begin = SHARED.get(name, (None, ""))
    if metavar:
        options.setdefault("metavar", metavar)
    group.add_argument(name, help=begin + help, **options)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        value, text = action.default, action.help or ""
        if value is None or value is False or value in ("", [], argparse.SUPPRESS):
            return text
        if "(default" in text:
            return text
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{text} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """The flags of a command. `group` adds a group of them.

    Args:
      doc: the command's docstring: a line that states the purpose, examples, and what else a user
        has to know.
      config: the experiment that is used without --config; None: the command takes no config.
      computes: whether the command runs something on a device.
      joins: whether the command can be one of several processes. `cli.run` joins them and sets
        `args.processes`.
      buckets: the flags that accept an address in a bucket.
    """

    def __init__(
        self,
        doc: str,
        config: str | None = None,
        computes: bool = True,
        joins: bool = False,
        buckets: Collection[str] = (),
    ):
        super().__init__(description=doc, formatter_class=_Formatter, allow_abbrev=False)
        self.config, self.computes, self.joins = config, computes, joins
        self._buckets = buckets
        if config:
            text = "NAME in configs/, FILE.py, FILE.py:ARGUMENT, FILE.json or a workdir"
            change = "--config.KEY=VALUE changes a value"
            add = self.group("experiment")
            add("--config", metavar="EXPERIMENT", help=f"{text}; {change} (default: {config})")
        if joins:
            add = self.group(PROCESSES)
            add("--coordinator_address", metavar="HOST:PORT", help="address of process 0")
            add("--num_processes", type=int, metavar="N", help="number of processes in the run")
            add("--process_id", type=int, metavar="I", help="number of this process, from 0")

    def group(self, title: str, exclusive: bool = False) -> Callable[..., None]:
        """Starts a group of flags, of which only one can be given if it is `exclusive`.

        Returns a function like `add_argument` that adds a flag to the group. Its `help` continues
        the help in SHARED.
        """
        group = self.add_argument_group(title)
        return functools.partial(_add, group.add_mutually_exclusive_group() if exclusive else group)

    def config_keys(self) -> dict[str, Any]:
        """The keys of a config with their defaults; none if the command takes no config."""
        if not self.config:
            return {}
        from flax.traverse_util import flatten_dict

        from effnet_jax import config

        return flatten_dict(config.get_config().to_dict(), sep=".")

    def format_help(self) -> str:
        """The help of argparse with the general flags at the end, and the keys of a config."""
        self._action_groups.sort(key=lambda g: (g is self._optionals, g.title == PROCESSES))
        if not self.config:
            return super().format_help()
        lines = (f"  --config.{key}={value}" for key, value in self.config_keys().items())
        title = (
            "config keys with their defaults, some of which the experiment changes; "
            "effnet_jax/config.py explains each:"
        )
        return "\n".join([super().format_help(), title, *lines, ""])

    def error(self, message: str) -> None:
        raise UserError(f"{message}. Try --help")

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        """Parses the flags. `config` is the config, and `experiment` the text that chose it."""
        args, rest = self.parse_known_args(args, namespace)
        names = {each.dest: (each.option_strings or [each.dest])[0] for each in self._actions}
        for key, value in vars(args).items():
            several = isinstance(value, list)
            expanded = [_expand_home(each) for each in (value if several else [value])]
            setattr(args, key, expanded if several else expanded[0])
            for each in expanded:
                # predict and explain report an image that can't be read, and go on with the others.
                is_path = key not in ("coordinator_address", "images")
                in_bucket = key in self._buckets and is_bucket(each)
                if is_path and not in_bucket and not str(each).startswith("hf://"):
                    check_local(names.get(key, key), each)
        if not self.config:
            return self.error(f"unexpected argument {rest[0]!r}") if rest else args
        from effnet_jax import experiments  # Imports JAX, after cli.tune_process.

        if not args.config and not experiments.experiments():
            self.error("give --config=FILE: the current directory has no folder configs")
        args.experiment = args.config or self.config
        args.config = override(experiments.read(args.experiment), rest)
        return args

    def start_seconds(self, args: Any) -> float:
        """Seconds to wait for other processes, from the config or that of the run in --workdir."""
        from effnet_jax import config as config_lib

        if self.config:
            config_lib.validate(args.config)  # Reports a mistake before the wait.
            return args.config.processes.start_seconds
        workdir = getattr(args, "workdir", None) or ""
        config = config_lib.load_if_any(workdir) or config_lib.get_config()
        return config.processes.start_seconds


def add_weights(add: Callable[..., None], note: str = "", **options: Any) -> None:
    """Adds --weights, and the flags that state what a weight file lacks."""
    source = ": a file, the workdir of a run, or hf://ORG/NAME"
    add("--weights", help=f"{source}{note}", **options)
    add_stated(add)


def add_stated(add: Callable[..., None]) -> None:
    """Adds the flags that state what a weight file lacks."""
    lists = "imagenet (drops the background of 1001 outputs), imagenet_background, imagenet21k"
    add("--model", help=" (default: detected from the shapes)")
    origins = "tf, keras, timm, timm_tf, torchvision or lukemelas"
    add("--origin", help=f": {origins} (default: detected from the names)")
    add("--classes", help=f": {lists}, or a file of names (default: those in the weight file)")


def add_data(add: Callable[..., None], **options: Any) -> None:
    """Adds the flags that choose the images to evaluate."""
    add("--data", help=": NAME or NAME:ARGUMENT in configs/evaluation, or FILE.py", **options)
    add("--data_dir", help=", or a folder of images: DIR/SPLIT/CLASS/*.jpg or DIR/CLASS/*.jpg")


def path(text: str) -> pathlib.Path:
    """The type of a flag that takes a path, local or in a bucket."""
    try:
        return to_path(text)
    except UserError as error:  # A ValueError: argparse drops its message.
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """The type of a flag that takes a whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; got {text!r}")
    return int(text)


class _OrNone(flags.ArgumentParser):
    """Parses None, which unsets a key, and values of one type."""

    def __init__(self, kind: type):
        self._kind = kind

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._kind(argument)


@contextlib.contextmanager
def _none_unsets() -> Iterator[None]:
    """Makes ml_collections accept None for numbers and strings within the context."""
    parsers = config_flags.config_flags._FIELD_TYPE_TO_PARSER  # Shared by the whole process.
    before = dict(parsers)
    for kind in (int, float, str):
        config_flags.register_flag_parser_for_type(kind, _OrNone(kind))
    try:
        yield
    finally:
        parsers.update(before)


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Changes a config by arguments like --config.optimizer.name=sgd, and locks it.

    A value is parsed as the type of the value that it replaces; None unsets it. Raises UserError
    for an unknown key, a value of another type, or any other argument.
    """
    from effnet_jax import config as config_lib

    given = {argument.partition("=")[0].removeprefix("--config.") for argument in arguments}
    arguments = [*arguments, *(f"--config.{key}=None" for key in config_lib.replaced(given))]
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        with _none_unsets():
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
    except Exception as error:  # absl and ml_collections raise many types.
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
