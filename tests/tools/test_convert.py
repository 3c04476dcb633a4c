import json

import pytest

from effnet_jax import cli, weights
from effnet_jax.errors import UserError
from effnet_jax.tools import convert
from tests.weights.stand_ins import in_format, write_pth


@pytest.fixture
def run(capsys):
    def call(*arguments):
        convert.main(convert.PARSER.parse_args([*map(str, arguments)]))
        return capsys.readouterr().out

    return call


def test_a_pytorch_file_becomes_one_of_ours_and_of_timms(tmp_path, run, capsys):
    source = tmp_path / "lite0.pth"
    write_pth(source, in_format("lukemelas", "lite0", 1000))
    flags = ["--to", str(tmp_path / "out"), "--classes=imagenet", "--json"]
    cli.run(convert.main, convert.PARSER, [str(source), *flags])  # As the command does it.
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(tmp_path / "out" / "model.safetensors")
    assert (told["arrays"], told["origin"], told["padding"]) == (247, "lukemelas", "same")
    assert (told["classes"], told["crop_padding"], told["resolution"]) == (1000, 32, 224)
    theirs = tmp_path / "theirs.safetensors"
    text = run(tmp_path / "out", "--to", theirs, "--names=timm")
    assert f"file: {theirs}" in text and "interpolation: bilinear_tf1" in text
    assert weights.load(theirs).classes[0] == "n01440764"
    with pytest.raises(UserError, match="--overwrite"):
        run(source, "--to", theirs)
    run(source, "--to", theirs, "--overwrite", "--model=lite0", "--resolution=200")
    assert weights.load(theirs).config.resolution == 200


def test_a_wrong_model_or_place_stops_it(tmp_path, run):
    source = tmp_path / "lite0.pth"
    write_pth(source, in_format("lukemelas", "lite0"))
    with pytest.raises(UserError, match=r"doesn't fit b0:\n  missing: _blocks\.0\._se_reduce"):
        run(source, "--to", tmp_path / "out", "--model=b0")
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        run(source, "--to", tmp_path / "out.pth")
    assert not (tmp_path / "out").exists()
