"""The help of every command: its purpose, examples that parse, and flags with one meaning."""

import collections
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import __main__ as benchmarks
from effnet_jax import __main__ as command
from effnet_jax import config as config_lib
from effnet_jax import flags

TOOLS = {name: importlib.import_module(f"effnet_jax.tools.{name}") for name in command.TOOLS}
PARSERS = {f"effnet-jax {name}": tool.PARSER for name, tool in TOOLS.items()}
PARSERS |= {f"python -m benchmarks {n}": each.PARSER for n, each in benchmarks.BENCHMARKS.items()}
DOCS = {name: parser.description for name, parser in PARSERS.items()}
DOCS |= {"effnet-jax": command.__doc__, "python -m benchmarks": benchmarks.__doc__}


def examples(doc: str) -> list[str]:
    """The commands under "Examples:" in a docstring."""
    return re.search(r"^Examples:\n((?:  .+\n)+)", doc, re.MULTILINE)[1].splitlines()


@pytest.mark.parametrize("name", DOCS)
def test_help_has_a_purpose_and_examples_that_parse(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    purpose, blank, *_ = DOCS[name].splitlines()
    assert re.fullmatch(r"[A-Z][a-z]+s,? .{20,}\.", purpose) and not blank
    assert len(examples(DOCS[name])) == 2
    for line in examples(DOCS[name]):
        words = shlex.split(line)
        count = 2 if words[0] == "effnet-jax" else 4
        started = " ".join(words[:count])
        assert started == name or name not in PARSERS
        args = PARSERS[started].parse_args(words[count:])
        if PARSERS[started].config:
            config_lib.validate(args.config)


@pytest.mark.parametrize("name", PARSERS)
def test_every_flag_has_a_group_a_help_and_its_default(name):
    parser = PARSERS[name]
    assert not parser._positionals._group_actions
    assert [each.dest for each in parser._optionals._group_actions] == ["help"]
    text = " ".join(parser.format_help().partition("config keys with")[0].split())
    assert str(ROOT) not in text and "(default: None)" not in text and "SUPPRESS" not in text
    for action in parser._actions:
        assert action.help and len(action.help) > 5, action.dest
        default = action.default
        if default not in (None, False, [], "", "==SUPPRESS=="):
            shown = " ".join(default) if isinstance(default, list) else default
            assert f"(default: {shown})" in text or action.nargs == 0, action.dest


def test_a_flag_of_several_commands_means_the_same_in_all_of_them():
    found = collections.defaultdict(list)
    for parser in PARSERS.values():
        for action in parser._actions:
            for name in action.option_strings or [action.dest]:
                found[name].append(action)
    assert {"--weights", "--csv", "--config", "--json"} <= found.keys()
    for name, actions in found.items():
        helps = {re.sub(r" \(default.*", "", each.help) for each in actions}
        begin = flags.SHARED[name][1] if name in flags.SHARED and len(helps) > 1 else None
        assert len(helps) == 1 or (begin and all(each.startswith(begin) for each in helps)), name
        assert len({each.nargs == 0 for each in actions}) == 1, name
    assert flags.SHARED.keys() <= found.keys()


def test_the_scripts_of_a_checkout_are_the_commands():
    for name in ("train", "eval"):
        script = importlib.import_module(name)
        assert (script.PARSER, script.main) == (TOOLS[name].PARSER, TOOLS[name].main)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("effnet-jax pre", ["predict", "prepare_imagenet"]),
        ("effnet-jax train --config.optimizer.na", ["--config.optimizer.name "]),
    ],
)
def test_tab_completes_tools_flags_and_config_keys(tmp_path, line, expected):
    pytest.importorskip("argcomplete")
    out = tmp_path / "completions"
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line}
    variables |= {"COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    python = [sys.executable, "-m", "effnet_jax"]
    subprocess.run(python, env=os.environ | variables, cwd=ROOT, check=True)
    assert sorted(out.read_text().split("\n")) == expected
