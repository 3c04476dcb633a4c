"""The command effnet-jax, its flags, and the configs that they choose."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

from effnet_jax import __main__ as command
from effnet_jax import cli, experiments, flags
from effnet_jax import config as config_lib
from effnet_jax.errors import UserError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["effnet-jax", *arguments])
    monkeypatch.setattr(cli, "tune_process", lambda: None)  # It would start the tests again.
    command.main()


def test_help_lists_every_tool_and_imports_none(monkeypatch, capsys):
    before = set(sys.modules)
    run(monkeypatch)
    out = capsys.readouterr().out
    for name in ("train", "eval", "sweep", "prepare_imagenet", "predict"):
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3
    assert {name for name in sys.modules if name.startswith("effnet_jax.tools.")} <= before


@pytest.mark.parametrize("tool", [path.stem for path in ROOT.glob("effnet_jax/tools/[!_]*.py")])
def test_each_tool_prints_all_its_flags(monkeypatch, capsys, tool):
    with pytest.raises(SystemExit, match=r"^0$"):
        run(monkeypatch, tool, "--help")
    out = capsys.readouterr().out
    parser = importlib.import_module(f"effnet_jax.tools.{tool}").PARSER
    flags_of_tool = [name for action in parser._actions for name in action.option_strings]
    assert f"usage: effnet-jax {tool}" in out and all(name in out for name in flags_of_tool)
    assert str(ROOT) not in out and "'None'" not in out and "==SUPPRESS==" not in out
    assert ("--config.optimizer.rmsprop.learning_rate=0.016\n" in out) == bool(parser.config)


def test_an_unknown_tool_names_the_near_ones(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "trian")
    assert "unknown tool 'trian'; did you mean: train" in capsys.readouterr().err


def test_a_tilde_is_the_home_directory():
    """Shells leave that of --csv=~/rows.csv, and a folder called ~ was made."""
    parser = flags.Parser("doc")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--dirs", nargs="*")
    found = parser.parse_args(["--csv=~/a.csv", "--dirs", "~/b", "c~"])
    assert found.csv == pathlib.Path.home() / "a.csv"
    assert found.dirs == [str(pathlib.Path.home() / "b"), "c~"]


def test_flags_that_a_tool_does_not_have_are_one_message():
    plain = flags.Parser("doc")
    plain.add_argument("--count", type=flags.count)
    assert plain.parse_args(["--count=3"]).count == 3
    for given, message in (
        (["surplus"], "unexpected argument 'surplus'. Try --help"),
        (["--coun=3"], "unexpected argument '--coun=3'"),
        (["--count=0"], "argument --count: must be a whole number, 1 or more; got '0'"),
    ):
        with pytest.raises(UserError, match=message):
            plain.parse_args(given)
    with_config = flags.Parser("doc", config="digits")
    for given, message in (
        (["surplus"], "unexpected argument 'surplus'"),
        (["--confg=digits"], "Unknown command line flag 'confg'. Did you mean: config"),
        (["--config=digist"], "unknown config 'digist'; did you mean: digits"),
        (["--config=nowhere.py:b0"], "no config file nowhere.py"),
        (["--config=nowhere.json"], "can't read a config from nowhere.json"),
        (["--config=imagenet:b9"], "unknown model 'b9'"),
    ):
        with pytest.raises(UserError, match=message):
            with_config.parse_args(given)


def test_a_config_is_chosen_by_name_file_or_workdir_and_changed_by_flags(tmp_path, monkeypatch):
    parser = flags.Parser("doc", config="digits")
    args = parser.parse_args(
        ["--config.batch_size=7", "--config.model.phi=None", "--config.seed", "3"]
    )
    assert args.experiment == "digits" and args.config.is_locked
    assert (args.config.batch_size, args.config.model.phi, args.config.seed) == (7, None, 3)
    assert parser.parse_args([]).config.model.phi == -4  # Of one command, not of the next.
    args = parser.parse_args(["--config=digits:b1"])
    assert args.experiment == "digits:b1" and args.config.model.width == 1.0
    config_lib.save(args.config, tmp_path / "config.json")
    for saved in (tmp_path, tmp_path / "config.json"):
        again = parser.parse_args([f"--config={saved}", "--config.epochs=3"]).config
        assert config_lib.changes(config_lib.to_dict(args.config), config_lib.to_dict(again)) == [
            "config.epochs: 40.0 -> 3.0"
        ]
    monkeypatch.setattr(experiments, "experiments", list)  # Not in a checkout.
    with pytest.raises(UserError, match="give --config=FILE"):
        parser.parse_args([])


@pytest.mark.parametrize(
    "arguments, redirected, code",
    [
        (["summary", "all"], "no reader", cli.NO_READER),  # A table.
        (["summary", "all", "--json"], "no reader", cli.NO_READER),
        (["sweep", "--help"], "no reader", cli.DONE),
        ([], "no reader", cli.NO_READER),
        (["predict", "a.jpg", "--weights=b"], "1>&- 2>&- 0<&-", cli.BAD_INPUT),
        (["summary", "b0"], "1>&- 2>&-", cli.DONE),
    ],
)
def test_a_closed_output_ends_a_command_quietly(tmp_path, arguments, redirected, code):
    reading, writing = os.pipe()
    os.close(reading)
    piped = redirected == "no reader"
    command = f'"$0" -m effnet_jax "$@" {"" if piped else redirected}'
    result = subprocess.run(
        ["bash", "-c", command, sys.executable, *arguments],
        stdout=writing if piped else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (code, b"")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--workdir=s3://bucket/run"),
        ("train", "--config=s3://bucket/run"),
        ("train", "--config.data.data_dir=gs://bucket/data"),
        ("eval", "--weights=s3://bucket/b0.npz", "--data_dir=x"),
        ("eval", "--workdir=run", "--csv=s3://bucket/results.csv"),
        ("sweep", "--sweep=seed=0,1", "--workdir=gs://bucket/sweep"),
        ("sweep", "--sweep=data.data_dir=gs://bucket/data", "--workdir=sweep"),
        ("report", "--out=gs://bucket/page"),
        ("report", "--out=page", "--results", "results", "s3://bucket/results"),
        ("convert", "b0.npz", "--to=https://host/b0.safetensors"),
        ("prepare_imagenet", "--from=gs://bucket", "--data_dir=data"),
        ("predict", "cat.jpg", "--weights=gs://bucket/b0.npz"),
    ],
)
def test_what_is_not_a_local_path_is_refused_and_makes_no_folder(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments)
    err = capsys.readouterr().err
    wrong = next(each for each in arguments if "://" in each)
    named = wrong.removeprefix("--sweep=").removeprefix("--config.")
    assert f"{named} is not a local path" in err
    assert "gcsfuse" in err and err.startswith("error: ")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--workdir=run", "--csv=gs://bucket/results.csv"),
        ("report", "--out=page", "--results", "gs://bucket/results"),
    ],
)
def test_a_table_in_a_bucket_without_its_package_is_refused(monkeypatch, capsys, arguments):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments)
    assert "pip install gcsfs google-cloud-storage" in capsys.readouterr().err
