import json

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

from effnet_jax import export, weights
from effnet_jax.errors import UserError
from effnet_jax.tools import export as tool
from effnet_jax.tools import predict

RUN = GOLDEN / "checkpoint_v1"


@pytest.fixture
def run(capsys):
    def call(command, *arguments):
        command.main(command.PARSER.parse_args([*map(str, arguments)]))
        return capsys.readouterr().out

    return call


@pytest.fixture
def photos(tmp_path):
    """Five pictures, two of which are in a folder with the name of a class."""
    rng = np.random.default_rng(0)
    for number in range(5):
        folder = tmp_path / "photos" / ("7" if number < 2 else "others")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_a_run_is_exported_quantised_checked_and_predicts(tmp_path, run, photos):
    path = tmp_path / "new" / "run.onnx"
    result = json.loads(run(tool, f"--weights={RUN}", f"--to={path}", f"--check={photos}"))
    assert (result["images"], result["labelled"], result["same_top1"]) == (5, 2, 1.0)
    assert result["difference"] < 1e-4 and result["top1"] == result["exported_top1"]
    arguments = [photos, "--json", "--top=3"]
    expected = run(predict, *arguments, f"--weights={RUN}").splitlines()
    found = run(predict, *arguments, f"--weights={path}").splitlines()
    for line, other in zip(map(json.loads, expected), map(json.loads, found), strict=True):
        assert [row["class"] for row in line["predictions"]] == [
            row["class"] for row in other["predictions"]
        ]
        for row, same in zip(line["predictions"], other["predictions"], strict=True):
            assert row["probability"] == pytest.approx(same["probability"], abs=2e-6)
    flags = ["--int8", f"--calibrate={RUN}", f"--check={RUN}", "--overwrite", "--batch=3"]
    result = json.loads(run(tool, f"--weights={RUN}", f"--to={path}", *flags))
    assert result["images"] == result["labelled"] == 360
    assert result["same_top1"] > 0.9 and result["difference"] < 0.3
    assert export.read(path).images[0][0] == 3


def test_resolution_and_bad_input(tmp_path, run, photos, capsys):
    to = f"--to={tmp_path / 'run.stablehlo'}"
    run(tool, f"--weights={RUN}", to, "--resolution=24", "--preprocess", "--softmax")
    exported = export.read(tmp_path / "run.stablehlo")
    assert exported.images[0][1:] == (24, 24, 3) and exported.preprocess.resolution == 24
    assert exported.classes == weights.load(RUN).classes
    with pytest.raises(UserError, match="leave out --model, --origin"):
        run(predict, photos, f"--weights={tmp_path / 'run.stablehlo'}", "--model=b0")
    with pytest.raises(UserError, match="is an exported network"):
        weights.load(tmp_path / "run.stablehlo")
    (tmp_path / "empty").mkdir()
    for flags, text in (
        ([], "already exists; --overwrite replaces it"),
        (["--int8"], "--int8 and --calibrate=DATA go together"),
        ([f"--calibrate={photos}"], "--int8 and --calibrate=DATA go together"),
        (["--overwrite", f"--check={tmp_path / 'empty'}"], "no image in"),
        (["--overwrite", "--int8", f"--calibrate={photos}"], r"files that end in \.onnx"),
        (["--batch=0"], "1 or more"),
    ):
        with pytest.raises(UserError, match=text):
            run(tool, f"--weights={RUN}", to, *flags)
    with pytest.raises(UserError, match="no image in"):
        flags = ["--int8", f"--calibrate={tmp_path / 'empty'}", f"--to={tmp_path / 'x.onnx'}"]
        run(tool, f"--weights={RUN}", *flags)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"cannot read .*bad\.png"):
        run(tool, f"--weights={RUN}", to, "--overwrite", f"--check={tmp_path / 'bad.png'}")
    with pytest.raises(UserError, match=r"cannot read .*bad\.png"):
        flags = ["--int8", f"--calibrate={tmp_path / 'bad.png'}", f"--to={tmp_path / 'x.onnx'}"]
        run(tool, f"--weights={RUN}", *flags)
    assert "fewer than 16 images" in capsys.readouterr().err
