"""Config: limits of every section, evaluations by name, saving and loading."""

import json
import math
import textwrap

import pytest
from flax.traverse_util import flatten_dict

from configs import folder
from effnet_jax import config as config_lib
from effnet_jax import experiments, flags
from effnet_jax.errors import UserError


def changed(model: str = "b0", **changes):
    config = config_lib.get_config(model)
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "config.seed must be at least 0 and at most 4294967294; got -1"),
        ("batch_size", 0, "config.batch_size must be at least 1; got 0"),
        ("epochs", "ten", "config.epochs must be at least 0; got ten"),
        ("model.phi", 21.0, "config.model.phi must be at least -20 and at most 20"),
        ("model.padding", "valid", "unknown config.model.padding 'valid'; did you mean: .*same"),
        ("model.batch_norm_scope", "gruop", "did you mean: group"),
        ("model.dropout", 1.0, "config.model.dropout must be at least 0 and at most"),
        ("model.survival_probability", 0.0, "survival_probability must be above 0"),
        ("model.stem_stride", 3, "stem_stride must be 1 or 2"),
        ("model.resolution", 8, "resolution 8 is below the network's total stride 32"),
        ("model.base", "efficientnet_v3", "did you mean: efficientnet_v2"),
        ("data.source", "tar", "unknown config.data.source"),
        ("data.on_corrupt", "skp", "did you mean: skip"),
        ("data.holdout", 0.9, "config.data.holdout must be at least 0.001 and at most 0.5"),
        ("preprocess.interpolation", "bicubik", "did you mean: bicubic"),
        ("preprocess.crop_area", (0.5, 1.5), "crop_area must be a range above 0 and at most 1"),
        ("preprocess.crop_area", 3, "must be two numbers"),
        ("preprocess.std", (1.0, 0.0, 1.0), "preprocess.std must be three numbers"),
        ("loss.label_smoothing", 3.0, "label_smoothing must be at least 0 and at most"),
        ("optimizer.name", "adam", "did you mean: adamw"),
        ("optimizer.adamw.b1", 1.5, "config.optimizer.adamw.b1 must be at least 0 and at most 1"),
        ("optimizer.weight_decay_rules", (("(", 1.0),), "weight_decay_rules: bad regular expres"),
        ("schedule.name", "cosin", "did you mean: cosine"),
        ("schedule.decay_rate", 0.0, "config.schedule.decay_rate must be at least 1e-09"),
        ("ema.decay", 1.1, "config.ema.decay must be at least 0 and at most 1"),
        ("checkpoint.keep_newest", 0, "config.checkpoint.keep_newest must be at least 1"),
        ("checkpoint.best_metric", "val/ema/top2", "did you mean: .*val/ema/top1"),
        ("checkpoint.resume", "always", "unknown config.checkpoint.resume"),
        ("init.which", "avg", "unknown config.init.which"),
        ("init.weights", "s3://b/run", "init.weights=s3://b/run is not a local path"),
        ("data.data_dir", "gs://b", "config.data.data_dir=gs://b is not a local path"),
        ("nonfinite.action", "roll-back", r"nonfinite\.action 'roll-back'; did you mean: rollback"),
        ("processes.lost_seconds", 600.0, "lost_seconds must be at least 3 and at most 150"),
        ("evaluations.val.weights", ("averaged",), "unknown config.evaluations.val.weights"),
        ("progressive.dropout", (0.1, 1.0), "config.progressive.dropout must be at least 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(key, value, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(changed(**{key: value}))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_config_is_infinite_or_nan(bad):
    """Any number, also in tuples and evaluations: inf steps or a NaN threshold mean nothing."""
    flat = flatten_dict(changed(**{"progressive.dropout": (0.1, 0.2)}).to_dict(), sep=".")
    of_floats = {key: value for key, value in flat.items() if isinstance(value, float)}
    tuples = {key: value for key, value in flat.items() if value and isinstance(value, tuple)}
    of_tuples = {key: value for key, value in tuples.items() if isinstance(value[0], float)}
    rules = {"optimizer.weight_decay_rules": ((".*", bad),)}
    keys = [*of_floats, "model.width", "evaluations.val.epochs"]
    values = dict.fromkeys(keys, bad) | rules
    values |= {key: (*value[:-1], bad) for key, value in of_tuples.items()}
    assert len(values) > 40 and "preprocess.mean" in values and "model.alpha" in values
    for key, value in values.items():
        with pytest.raises(UserError, match=f"^config.{key} must be finite; got {bad}"):
            config_lib.validate(changed(**{key: value}))
    config = changed()
    config.evaluations.val.preprocess.crop_fraction = bad
    with pytest.raises(UserError, match=r"val\.preprocess\.crop_fraction must be finite"):
        config_lib.validate(config)


def test_a_batch_has_to_divide_among_the_devices():
    config = changed(batch_size=60, eval_batch_size=64)
    config_lib.validate(config)
    message = "config.batch_size=60 is not divisible by 8 devices; use 64"
    with pytest.raises(UserError, match=message):
        config_lib.validate(config, devices=8)


def test_evaluations_go_by_name():
    config = config_lib.get_config()
    config.evaluations.minival = config_lib.evaluation(("ema",), 1.0, eval_split="minival")
    config.checkpoint.best_metric = "minival/ema/top1"
    config_lib.validate(config)
    assert config_lib.for_evaluation(config, "minival").data.eval_split == "minival"
    assert config_lib.for_evaluation(config, "val").data == config.data
    config.checkpoint.best_metric = "minival/raw/top1"
    with pytest.raises(UserError, match="best_metric 'minival/raw/top1'; did you mean"):
        config_lib.validate(config)
    config.evaluations.minival.data.eval_spilt = "minival"
    with pytest.raises(UserError, match=r"config\.evaluations\.minival\.data: .*eval_spilt"):
        config_lib.validate(config)


def test_a_saved_config_is_read_back_and_a_newer_key_has_its_default(tmp_path):
    config = config_lib.get_config("v2-s")
    config.evaluations.real = config_lib.evaluation(("ema",), name="imagenet2012_real")
    config.progressive.resolution = (128, 256)
    path = tmp_path / "config.json"
    config_lib.save(config, path)
    for source in (path, tmp_path):
        assert config_lib.load(source) == config
    assert experiments.read(str(path)) == config
    values = json.loads(path.read_text())
    del values["ema"], values["data"]["threads"]
    path.write_text(json.dumps(values))
    assert config_lib.load(path) == config


def test_what_is_no_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run in .*config\.json is missing; is --workdir right"):
        config_lib.load(tmp_path)
    path = tmp_path / "config.json"
    unknown = config_lib.to_dict(config_lib.get_config()) | {"optimiser": {"name": "sgd"}}
    for text in ("{", "[]", '{"model": 3}', '{"model": {}}', json.dumps(unknown)):
        path.write_text(text)
        with pytest.raises(UserError, match="is no config that this program wrote"):
            config_lib.load(tmp_path)


def test_changes_name_the_key_and_both_values():
    old, new = (config_lib.to_dict(config_lib.get_config()) for _ in range(2))
    new["optimizer"]["rmsprop"]["learning_rate"] = 0.5
    assert config_lib.changes(old, new) == ["config.optimizer.rmsprop.learning_rate: 0.016 -> 0.5"]


def test_experiments_are_found_by_name_here_and_in_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text("def get_sweep(config, argument):\n    return argument\n")
    assert experiments.find("sweeps", "sweep", "mine", "get_sweep")(None, "x") == "x"
    assert experiments.find("sweeps", "sweep", "seeds", "get_sweep")  # The checkout's.
    with pytest.raises(UserError, match=r"unknown sweep 'seed'; did you mean: seeds"):
        experiments.find("sweeps", "sweep", "seed", "get_sweep")
    with pytest.raises(UserError, match=r"no sweep file nowhere\.py"):
        experiments.find("sweeps", "sweep", "nowhere.py", "get_sweep")
    broken = folder / "broken.py"
    broken.write_text(textwrap.dedent("import nothing_by_this_name"))
    with pytest.raises(UserError, match=r"can't load sweep file .*broken\.py"):
        experiments.find("sweeps", "sweep", "broken", "get_sweep")
    broken.write_text("")
    with pytest.raises(UserError, match=r"broken\.py needs a function get_sweep"):
        experiments.find("sweeps", "sweep", str(broken), "get_sweep")


def test_durations_in_steps_and_epochs_replace_each_other():
    config = folder.get_config()
    assert (config.epochs, config.steps) == (None, 500)
    config = flags.override(config, ["--config.epochs=2", "--config.eval_steps=7"])
    assert (config.epochs, config.steps, config.eval_epochs, config.eval_steps) == (
        2,
        None,
        None,
        7,
    )
    config.init.weights = "w.npz"
    config_lib.validate(config)
    for arguments in (["--config.epochs=2", "--config.steps=9"], ["--config.eval_steps=None"]):
        changed = flags.override(folder.get_config("b0"), arguments)
        with pytest.raises(UserError, match=r"config\.(eval_)?epochs=.* and config.*: give one of"):
            config_lib.validate(changed)
