"""Repositories for the Hub, written to a folder and read back; what is uploaded."""

import json
import shutil
import sys
import types

import pytest

from effnet_jax import weights
from effnet_jax.errors import UserError
from effnet_jax.tools import convert
from effnet_jax.weights import timm
from tests.conftest import GOLDEN
from tests.weights.stand_ins import flat, random_weights

LICENSE = "--license=apache-2.0"


def run(*arguments):
    convert.main(convert.PARSER.parse_args([*map(str, arguments)]))


@pytest.fixture
def workdir(tmp_path):
    """The workdir of a run with what a run writes about itself."""
    copy = shutil.copytree(GOLDEN / "checkpoint_v1", tmp_path / "run")
    versions = {"jax": "0.10.2"}
    start = {"records": 1437, "commit": "0a1b2c", "versions": versions}
    (copy / "runs.jsonl").write_text(json.dumps(start) + "\n")
    scores = {"step": 5, "val/ema/top1": 0.9875, "val/ema/count": 360, "val/raw/top1": 0.5}
    (copy / "metrics.jsonl").write_text(json.dumps(scores | {"val/raw/count": 360}) + "\n")
    return copy


def assert_same(found, wanted):
    assert found.preprocess == wanted.preprocess and found.classes == wanted.classes
    assert found.config == wanted.config and found.origin == wanted.origin
    theirs = flat(wanted)
    assert all((value == theirs[name]).all() for name, value in flat(found).items())


@pytest.mark.parametrize("model", ["lite0", "w=0.25,d=0.2,r=32"])
def test_a_folder_goes_there_and_back(tmp_path, model):
    wanted = random_weights(model)
    weights.save(tmp_path / "w.safetensors", wanted)
    folder = tmp_path / "hub"
    run(tmp_path / "w.safetensors", "--to=hf://org/net", LICENSE, "--dry_run", f"--out={folder}")
    assert_same(weights.load(folder), wanted)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "# net\n" in card
    assert 'effnet_jax.load("hf://org/net")' in card and "Converted from `w.safetensors`" in card
    assert "| resolution | " in card and "10 classes: label 0, label 1" in card
    config = json.loads((folder / "config.json").read_text())
    if model == "lite0":
        assert config["architecture"] == "tf_efficientnet_lite0"
        assert 'timm.create_model("hf-hub:org/net"' in card
        stated = timm.read_config(folder / "config.json")
        assert (stated["model"], stated["origin"]) == ("lite0", "timm_tf")
        assert stated["preprocess"]["crop_fraction"] == 224 / 256
        assert stated["classes"] == list(wanted.classes)
    else:
        assert config["preprocess"] == wanted.preprocess and "timm" not in card


def test_the_card_of_a_run_has_data_recipe_scores_and_commit(tmp_path, workdir):
    folder = tmp_path / "hub"
    run(workdir, "--to=hf://org/digits", LICENSE, "--dry_run", f"--out={folder}")
    card = (folder / "README.md").read_text()
    assert "Trained on digits, 1,437 images (split train)" in card and "commit 0a1b2c" in card
    assert "| val | 98.75% | 360 |" in card and "ema weights of step 5" in card
    assert "config.batch_size: 2048 -> 256" in card and str(tmp_path) not in card
    folder = f"--out={tmp_path / 'raw'}"
    run(workdir, "--to=hf://org/digits", LICENSE, "--dry_run", folder, "--weights=raw")
    assert "| val | 50.00% | 360 |" in (tmp_path / "raw" / "README.md").read_text()


def test_what_timm_calls_a_network():
    for model, changes, name in (
        ("b0", {}, "tf_efficientnet_b0"),
        ("edgetpu-s", {}, "tf_efficientnet_es"),
        ("v2-b0", {}, "tf_efficientnetv2_b0"),
        ("b0", {"padding": "symmetric", "batch_norm_epsilon": 1e-5}, "efficientnet_b0"),
        ("v2-b0", {"padding": "symmetric", "batch_norm_epsilon": 1e-5}, None),
        ("b0", {"padding": "symmetric"}, None),
        ("b0", {"stem_stride": 1}, None),
        ("w=1.0,d=1.05,r=224", {}, None),
    ):
        found = random_weights(model)
        config = found.config.copy_and_resolve_references().unlock()
        config.update(changes)
        found = found.replace(config=config)
        assert timm.name_of(found) == name
        assert name is None or timm.model_of(name) == model


def test_an_upload_is_asked_for_once_and_refusals_are_told(tmp_path, workdir, monkeypatch):
    uploaded = []

    class HfApi:
        def create_repo(self, repository, exist_ok):
            if not exist_ok and uploaded:
                raise OSError("409 Client Error: You already created this model repo.\nmore")
            return f"https://hub/{repository}"

        def upload_folder(self, repo_id, folder_path):
            uploaded.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=HfApi))
    run(workdir, "--to=hf://org/net", LICENSE)
    assert uploaded == [("org/net", ["README.md", "config.json", "model.safetensors"])]
    with pytest.raises(UserError, match="can't publish org/net: 409 Client Error"):
        run(workdir, "--to=hf://org/net", LICENSE)
    run(workdir, "--to=hf://org/net", LICENSE, "--overwrite")
    dry = ("--dry_run", f"--out={tmp_path / 'hub'}")
    run(workdir, "--to=hf://org/net", LICENSE, *dry)
    assert len(uploaded) == 2
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments, text in (
        (["--to=hf://org/net", LICENSE], "pip install huggingface_hub"),
        (["--to=hf://org/net"], "needs --license"),
        (["--to=hf://org/net", LICENSE, "--dry_run"], "go together"),
        (["--to=hf://org/net", LICENSE, "--out=hub"], "go together"),
        (["--to=hf://org", LICENSE, *dry], "write hf://ORG/NAME"),
        (["--to=hf://org/net", LICENSE, *dry], "already exists; --overwrite replaces it"),
        (["--to=hf://org/net", LICENSE, *dry, "--overwrite", "--names=timm"], "timm has no net"),
        (["--to=hf://org/net", LICENSE, *dry, "--names=keras"], "unknown names 'keras'"),
        ([f"--to={tmp_path / 'x.safetensors'}", LICENSE], "apply to --to=hf://ORG/NAME"),
    ):
        with pytest.raises(UserError, match=text):
            run(workdir, *arguments)
