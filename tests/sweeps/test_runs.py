"""Sweeps against what the paper and the grid say, and against their bad input."""

import json
import operator

import pytest
from ml_collections import ConfigDict

from configs import cluttered_digits
from effnet_jax import config as default
from effnet_jax import csv_rows, experiments, models, scaling
from effnet_jax.errors import UserError
from effnet_jax.report import results
from effnet_jax.sweeps import grid
from effnet_jax.sweeps import runs as module
from effnet_jax.sweeps.runs import Run, make_schedule, product


def b0():
    config = default.get_config("b0")
    config.model.num_classes = 1000
    return config


def small():
    config = cluttered_digits.get_config()
    config.model.num_classes = 10
    return config


def relative(runs: module.Scheduled, base: scaling.Coefficients) -> tuple[float, float, float]:
    found = runs.coefficients
    return found.width / base.width, found.depth / base.depth, found.resolution / base.resolution


def test_candidates_are_those_found_by_hand():
    # Step 0.2, products by hand: 1 * (1 * 1.4)^2 = 1.96, 1 * (1.2 * 1.2)^2 = 2.0736,
    # 1.4 * 1.2^2 = 2.016, 2 * 1 = 2; 1.2 * 1.2^2 * 1 = 1.728 and 1.2 * 1.4^2 = 2.352 are too far.
    expected = {(1, 1, 1.4), (1, 1.2, 1.2), (1, 1.4, 1), (1.4, 1, 1.2), (1.4, 1.2, 1), (2, 1, 1)}
    assert set(grid.candidates(step=0.2, tolerance=0.1)) == expected
    # The paper's own are a point of a grid with its spacing: 1.2 * 1.1^2 * 1.15^2 = 1.92.
    paper = grid.candidates(step=0.05, tolerance=0.1)
    assert (1.2, 1.1, 1.15) in paper
    assert all(min(point) >= 1 for point in paper)
    assert all(abs(a * b**2 * g**2 - 2) <= 0.1 + 1e-9 for a, b, g in paper)
    assert len(set(paper)) == len(paper)


def test_a_grid_without_candidates_says_how_near_the_nearest_is():
    # 1 * 1 * 1.4^2 = 1.96 and 2 * 1 * 1 is off the grid's axis 1, 1.4, 1.8: 0.04 is the nearest.
    with pytest.raises(UserError, match=r"step=0.4 .* within 0.01 of 2; the nearest.* 0.04 off"):
        grid.candidates(step=0.4, tolerance=0.01)
    with pytest.raises(UserError, match="step > 0"):
        grid.candidates(step=0)
    with pytest.raises(UserError, match="over 100,000 points"):
        grid.candidates(step=0.001)


def test_solve_finds_the_nearest_stair():
    def stairs(x):
        return int(x * 10)  # 20 from 2.0, 21 from 2.1.

    assert [stairs(grid.solve(stairs, cost)) for cost in (3, 20.4, 20.6, 1000)] == [
        3,
        20,
        21,
        1000,
    ]


@pytest.mark.parametrize("config", [b0(), small()], ids=["b0", "small"])
def test_every_method_costs_the_same_within_5_percent(config):
    runs = make_schedule(config, "methods")
    base = runs[0].cost.multiply_adds
    names = {"width": 0, "depth": 1, "resolution": 2}
    assert [p.run.name for p in runs][:3] == ["base", "width_2x", "depth_2x"]
    assert len(runs) == 9
    for level in (runs[1:5], runs[5:]):
        costs = [each.cost.multiply_adds / base for each in level]
        middle = (min(costs) + max(costs)) / 2
        assert costs == pytest.approx([middle] * 4, rel=0.05)
        multiple = float(level[0].run.name.rpartition("_")[2][:-1])
        assert middle == pytest.approx(multiple, rel=0.15 if base < 1e7 else 0.05)
    for each in runs[1:]:
        ratios = relative(each, runs[0].coefficients)
        if each.run.series in names:  # One dimension grows, the others stay.
            grown = names[each.run.series]
            assert ratios[grown] > 1.2
            assert [r for i, r in enumerate(ratios) if i != grown] == pytest.approx([1, 1])
        else:
            assert min(ratios) > 1


def test_methods_also_scale_by_the_paper_s_coefficients_where_others_were_found():
    config = b0()
    config.model.alpha = 1.3
    series = [runs.run.series for runs in make_schedule(config, "methods:2")]
    assert series == ["base", "width", "depth", "resolution", "compound", "compound_paper"]
    schedule = make_schedule(config, "methods:width,2,compound,tolerance=0.1")
    names = [runs.run.name for runs in schedule]
    assert names == ["base", "width_2x", "compound_2x"]


def test_the_points_are_the_paper_s():
    # reference/paper_text.json, fig3_single_dim_from_B0 and fig4.
    points = {
        "width": (0, [1.0, 1.4, 1.8, 2.6, 3.8, 5.0]),
        "depth": (1, [1.0, 2.0, 3.0, 4.0, 6.0, 8.0]),
        "resolution": (2, [1.0, 1.3, 1.5, 1.7, 1.9, 2.2, 2.5]),
    }
    base = models.coefficients(b0().model)
    for name, (dimension, expected) in points.items():
        runs = make_schedule(b0(), name)
        found = [relative(each, base) for each in runs]
        assert [ratios[dimension] for ratios in found] == pytest.approx(expected, rel=2e-3)
        others = [r for ratios in found for i, r in enumerate(ratios) if i != dimension]
        assert others == [1] * (2 * len(expected))
    assert make_schedule(b0(), "resolution")[-1].coefficients.resolution == 560
    lines = {each.run.series for each in make_schedule(b0(), "width_at")}
    assert lines == {f"d={d}, r={r}" for d in ("1.0", "2.0") for r in ("1.0", "1.3")}


def test_table_7_and_the_published_models_cost_what_the_reference_counts():
    # reference/paper_table7_cam_scaling.csv, our count with the standard rounding.
    counts = [runs.cost.multiply_adds for runs in make_schedule(b0(), "table7")]
    expected = [0.3858e9, 1.5751e9, 1.45e9, 1.5375e9, 1.8001e9]
    assert counts == pytest.approx(expected, rel=2e-3)
    runs = make_schedule(b0(), "phi")
    assert [each.run.name for each in runs] == [*(f"b{i}" for i in range(8)), "phi=8"]
    assert runs[7].cost.parameters == 66_347_960  # B7, reference/param_counts.csv.
    assert make_schedule(b0(), "phi:0")[0].cost == runs[0].cost


def test_phi_scales_other_bases_by_number_alone():
    config = default.get_config("resnet50")
    config.model.num_classes = 1000
    runs = make_schedule(config, "phi")
    assert len(runs) == 8 and {each.config.model.base for each in runs} == {"resnet50"}
    assert runs[0].cost.parameters == 25_557_032
    with pytest.raises(UserError, match="b0 is not based on resnet50"):
        make_schedule(config, "phi:b0,1")


def test_phi_knows_the_published_models_of_the_config_s_base():
    config = default.get_config("v2-b0")
    config.model.num_classes = 1000
    config.model.batch_norm_momentum = 0.95
    runs = make_schedule(config, "phi:v2-b0,v2-b3,1")
    assert [each.run.name for each in runs] == ["v2-b0", "v2-b3", "phi=1"]
    assert runs[1].cost.parameters == 14_358_406  # reference/param_counts.csv.
    assert runs[1].config.model.dropout == 0.3
    assert {each.config.model.batch_norm_momentum for each in runs} == {0.95}
    with pytest.raises(UserError, match="v2-s is not based on efficientnet_v2; give numbers"):
        make_schedule(config, "phi:v2-b0,v2-s")


def test_a_sweep_file_of_the_user_s_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("x = 1")
    with pytest.raises(UserError, match="needs a function get_sweep"):
        make_schedule(small(), str(path))
    path.write_text("def get_sweep(")
    with pytest.raises(UserError, match="can't load sweep file"):
        make_schedule(small(), str(path))


def test_numpy_numbers_are_values_like_others(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("""
import jax.numpy as jnp, numpy as np
from effnet_jax.sweeps.runs import Run, multiply_adds, scaled
def get_sweep(config, argument):
    for seed in np.arange(2):
        for rate in np.float32([0.1, 0.2]):
            overrides = scaled(config, width=np.float32(1.5))
            assert multiply_adds(config, overrides)
            overrides |= {"seed": seed, "optimizer.sgd.learning_rate": rate}
            overrides |= {"preprocess.flip": np.bool_(seed)}
            overrides |= {"augment.erase_area": (np.float64(0.1), np.float32(0.3))}
            overrides |= {"preprocess.mean": np.array([0.5, 0.25, 0.5])}
            overrides |= {"ema.decay": jnp.float32(0.9), "eval_epochs": np.array(2.0)}
            yield Run(f"{rate}_{seed}", "mine", "", overrides)
""")
    runs = make_schedule(small(), str(path))
    configs = [each.config for each in runs]
    found = [(each.seed, each.optimizer.sgd.learning_rate) for each in configs]
    assert found == [(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2)]
    assert [each.preprocess.flip for each in configs] == [False, False, True, True]
    assert configs[0].augment.erase_area == (0.1, 0.3)
    assert configs[0].preprocess.mean == (0.5, 0.25, 0.5)
    assert runs[0].row()["config.optimizer.sgd.learning_rate"] == "0.1"
    assert (runs[0].row()["config.ema.decay"], configs[0].eval_epochs) == ("0.9", 2.0)


def test_a_key_that_some_runs_change_is_known_of_all(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("""
from effnet_jax.sweeps.runs import Run
def get_sweep(config, argument):
    yield Run("base", "mine", "base", {})
    yield Run("soft", "mine", "soft", {"loss.label_smoothing": 0.3})
""")
    rows = [each.row() for each in make_schedule(small(), str(path))]
    assert [row["config.loss.label_smoothing"] for row in rows] == ["0.0", "0.3"]


def test_the_recipe_is_all_that_the_runs_of_a_sweep_share():
    def recipes(sweep="optimizer.sgd.momentum=0.5,0.9 seed=0,1", **changes):
        config = small()
        config.update_from_flattened_dict(changes)
        return {each.row()["recipe"] for each in make_schedule(config, sweep)}

    (one,) = recipes()
    changes = {"optimizer.sgd.momentum": 0.7, "seed": 7, "log_steps": 3, "data.threads": 2}
    changes |= {"checkpoint.keep_newest": 1, "processes.lost_seconds": 9.0, "eval_epochs": 9.0}
    assert recipes(**changes) == {one}
    other = {"loss.label_smoothing": 0.3}, {"init.weights": "a"}, {"epochs": 9.0}
    # How the images of the evaluation alone are cropped.
    other += ({"evaluations.val.preprocess": ConfigDict({"crop_padding": 9})},)
    assert len({one}.union(*(recipes(**each) for each in other))) == 5


def test_table_3_scales_the_other_bases():
    runs = {each.run.name: each for each in make_schedule(b0(), "table3")}
    assert len(runs) == 4 + 5 + 5
    for base, billions in (("mobilenet_v1", 0.57), ("mobilenet_v2", 0.30), ("resnet50", 4.09)):
        assert runs[f"{base}_baseline"].cost.multiply_adds == pytest.approx(
            billions * 1e9, rel=0.01
        )
        assert runs[f"{base}_baseline"].config.model.survival_probability == 1.0
    with pytest.raises(UserError, match="unknown base of table 3 'resnet'"):
        make_schedule(b0(), "table3:resnet")


def test_fine_tuning_takes_the_networks_that_a_folder_has_weights_of(tmp_path):
    for name in ("lite1", "lite0"):
        (tmp_path / f"{name}.safetensors").touch()
    config = experiments.read("elpv")
    config.model.num_classes = 2
    found = {each.run.name: each for each in make_schedule(config, f"fine_tuning:{tmp_path}")}
    methods = ["head-first", "frozen-norms", "frozen-features", "scratch"]
    assert list(found) == ["lite0", "lite1", *(f"lite0_{method}" for method in methods)]
    assert [each.run.series for each in found.values()] == ["fine-tuned"] * 2 + methods
    first, larger, *others = found.values()
    assert first.cost.multiply_adds < larger.cost.multiply_adds
    assert {each.cost for each in others} == {first.cost}
    assert larger.config.init.weights == str(tmp_path / "lite1.safetensors")
    assert larger.config.model.survival_probability == config.model.survival_probability
    assert found["lite0_scratch"].config.init.weights is None
    assert found["lite0_head-first"].config.fine_tune.head_epochs == config.epochs / 4
    for sweep in ("fine_tuning", f"fine_tuning:{tmp_path / 'none'}"):
        with pytest.raises(UserError, match="a folder with MODEL"):
            make_schedule(config, sweep)
    (tmp_path / "lite7.safetensors").touch()
    with pytest.raises(UserError, match="unknown model 'lite7'"):
        make_schedule(config, f"fine_tuning:{tmp_path}")


def test_seeds_repeat_a_sweep():
    runs = make_schedule(small(), "seeds:2,depth:1,2")
    names = ["depth_1_seed0", "depth_2_seed0", "depth_1_seed1", "depth_2_seed1"]
    assert [each.run.name for each in runs] == names
    assert [each.config.seed for each in runs] == [0, 0, 1, 1]
    assert runs[0].run.label == runs[2].run.label
    for wrong in ("seeds", "seeds:2", "seeds:0,depth", "seeds:x,depth"):
        with pytest.raises(UserError, match="count and a sweep"):
            make_schedule(small(), wrong)


def test_a_finer_grid_has_its_middle_and_what_is_near():
    # By hand: of step 0.2 within 0.1 of 2, near (1.15, 1, 1.3) are 1.4 / 1 / 1.2 (a quarter away in
    # alpha) and 1 / 1 / 1.4 and 1 / 1.2 / 1.2, not 1.4 / 1.2 / 1 or 2 / 1 / 1.
    middle = "alpha=1.15,beta=1,gamma=1.3,within=0.25"
    runs = make_schedule(small(), f"grid:step=0.2,tolerance=0.1,{middle}")
    found = {tuple(float(x) for x in each.run.label.split(", ")) for each in runs}
    assert found == {(1.15, 1, 1.3), (1, 1, 1.4), (1, 1.2, 1.2), (1.4, 1, 1.2)}


def test_an_equal_grid_meets_the_multiply_adds_that_a_plain_one_misses():
    base = make_schedule(small(), "depth:1")[0].cost.multiply_adds

    def worst(sweep):
        costs = [each.cost.multiply_adds / base / 2 for each in make_schedule(small(), sweep)]
        return max(abs(cost - 1) for cost in costs)

    assert worst("grid:step=0.1,tolerance=0.05,equal=1") < 0.15
    assert worst("grid:step=0.1,tolerance=0.05") > 0.2


def test_bad_sweeps_are_one_message(monkeypatch, tmp_path):
    cases = {
        "widht": r"unknown sweep 'widht'; did you mean: width",
        "width:a": "should be numbers",
        "width:-1": "must be above 0",
        "grid:size=3": "unknown setting of the sweep 'size'",
        "grid:step=x": "a name and a number",
        "grid:phi=nan": "the grid's phi must be a number between -100 and 100; got nan",
        "grid:step=inf": "the grid's step must be a number",
        "missing.py": "no sweep file missing.py",
        "phi:b0,x": "unknown model 'x'",
        "methods:2,tolerence=0.1": "unknown setting of the sweep 'tolerence'; did you mean: tol",
        "methods:2,widht": "unknown method 'widht'; did you mean: width",
        "depth:900": "run 'depth_900': width, depth",
    }
    for sweep, message in cases.items():
        with pytest.raises(UserError, match=message):
            make_schedule(small(), sweep)

    def with_runs(*runs):
        monkeypatch.setattr(module, "expand", lambda config, sweep: iter(runs))
        return make_schedule(small(), "mine")

    with pytest.raises(UserError, match=r"run .a.: unknown config key .widht.. Did you mean .wi"):
        with_runs(Run("a", "", "", {"model.widht": 2.0}))
    with pytest.raises(UserError, match=r"run .a.: flag --config.epochs=two: could not convert"):
        with_runs(Run("a", "", "", {"epochs": "two"}))
    with pytest.raises(UserError, match=r"run .a.: config.batch_size must be at least 1"):
        with_runs(Run("a", "", "", {"batch_size": -3}))
    with pytest.raises(UserError, match=r"run .a.: unknown config.optimizer.name 'sdg'"):
        with_runs(Run("a", "", "", {"optimizer.name": "sdg"}))
    with pytest.raises(UserError, match="two runs with the name 'a'"):
        with_runs(Run("a", "", "", {}), Run("a", "", "", {"seed": 1}))
    with pytest.raises(UserError, match="the same run twice, as 'seed=0' and 'seed=00'; list each"):
        with_runs(*product("seed=0,00"))
    with pytest.raises(UserError, match="can't be the name of a folder"):
        with_runs(Run("a/b", "", "", {}))
    with pytest.raises(UserError, match="has no runs"):
        with_runs()


def test_values_of_keys_make_a_run_of_every_combination():
    runs = make_schedule(small(), "optimizer.sgd.learning_rate=0.1,0.2  seed=0,1,2")
    assert [each.run.name for each in runs][:4] == [
        "learning_rate=0.1_seed=0",
        "learning_rate=0.1_seed=1",
        "learning_rate=0.1_seed=2",
        "learning_rate=0.2_seed=0",
    ]
    rates = [(each.config.optimizer.sgd.learning_rate, each.config.seed) for each in runs]
    assert rates == [(rate, seed) for rate in (0.1, 0.2) for seed in (0, 1, 2)]
    assert {(each.run.series, each.run.label) for each in runs} == {
        ("learning_rate", "learning_rate=0.1"),
        ("learning_rate", "learning_rate=0.2"),
    }
    runs = make_schedule(small(), "seeds:2,epochs=1,2")
    assert [each.run.name for each in runs][:2] == ["epochs=1_seed0", "epochs=2_seed0"]
    runs = make_schedule(small(), "optimizer.sgd.momentum=0.5 optimizer.rmsprop.momentum=0.6")
    assert runs[0].run.name == "optimizer.sgd.momentum=0.5_optimizer.rmsprop.momentum=0.6"


@pytest.mark.parametrize(
    ("sweep", "values", "name"),
    [
        ("epochs=1,2.5", [1.0, 2.5], "epochs=1"),
        ("batch_size=32,64", [32, 64], "batch_size=32"),
        ("model.dropout=None,0.5", [None, 0.5], "dropout=None"),
        ("model.resolution=48,None", [48, None], "resolution=48"),
        ("init.weights=runs/a,None", ["runs/a", None], "weights=runs-a"),
        ("preprocess.flip=true,False", [True, False], "flip=true"),
        ("optimizer.name=adamw,sgd", ["adamw", "sgd"], "name=adamw"),
        ("augment.erase_area=(0.1, 0.2),(0.2,0.3)", [(0.1, 0.2), (0.2, 0.3)], "erase_area=-0.1-"),
        (
            "optimizer.learning_rate_rules=(('stem/.*', 0.0), ('.*', 1.0))",
            [(("stem/.*", 0.0), (".*", 1.0))],
            "learning_rate_rules=-stem-",
        ),
    ],
)
def test_values_have_the_type_of_the_config_s_own(sweep, values, name):
    runs = make_schedule(small(), sweep)
    found = [operator.attrgetter(sweep.partition("=")[0])(each.config) for each in runs]
    assert found == values and [type(value) for value in found] == [type(v) for v in values]
    assert runs[0].run.name.startswith(name)
    assert len({each.run.name for each in runs}) == len(values)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        # A typo or an impossible value in any section, and the run that has it.
        ("optimizer.sgd.learning_rat=1", "unknown config key 'learning_rat'. Did you mean"),
        ("optimiser.name=sgd", "unknown config key 'optimiser'"),
        ("xyzzy=1", r"unknown config key 'xyzzy'; effnet_jax/config.py has every key"),
        ("epochs=many", "config.epochs=many: could not convert"),
        ("batch_size=64,0", "run 'batch_size=0': config.batch_size must be at least 1"),
        ("model.dtype=float32,float16", "run 'dtype=float16': unknown config.model.dtype"),
        ("model.base=resnet19x", "run .*: unknown config.model.base 'resnet19x'"),
        ("data.source=folders", "unknown config.data.source 'folders'"),
        ("data.threads=0", "config.data.threads must be at least 1"),
        ("evaluations.val.weights=('raw', 'emma')", "unknown config.evaluations.val.weights"),
        ("preprocess.interpolation=cubic", "unknown config.preprocess.interpolation 'cubic'"),
        ("preprocess.crop_area=3", "config.preprocess.crop_area must be two numbers"),
        ("augment.policy=autoagment", "unknown config.augment.policy 'autoagment'"),
        ("augment.policy=None", "unknown config.augment.policy None"),
        ("progressive.dropout=(0.1, 1.0)", "config.progressive.dropout must be at least 0"),
        ("loss.label_smoothing=0,1", "run 'label_smoothing=1': config.loss.label_smoothing must"),
        ("optimizer.weight_decay_rules=(('(', 0.0),)", "weight_decay_rules: bad regular expr"),
        ("schedule.decay_epochs=0", "config.schedule.decay_epochs must be at least 1e-09"),
        ("ema.decay=1.5", "config.ema.decay must be at least 0 and at most 1; got 1.5"),
        ("checkpoint.best_metric=val/ema/top2", "unknown config.checkpoint.best_metric"),
        ("nonfinite.action=rollbak", "unknown config.nonfinite.action 'rollbak'"),
        ("processes.lost_seconds=1", "config.processes.lost_seconds must be at least 3"),
        ("seed=0 seed=1", "'seed=1' should be KEY=VALUE,VALUE, with each key once"),
        ("seed=0 epochs", "'epochs' should be KEY=VALUE,VALUE"),
        ("seed=0,0", "two runs with the name 'seed=0'"),
    ],
)
def test_a_dry_run_finds_what_is_wrong_with_any_run(sweep, message):
    with pytest.raises(UserError, match=message):
        make_schedule(small(), sweep)


def test_stages_that_a_scale_would_not_reach_are_refused():
    config = small()
    config.progressive.resolution = (16, 24)
    with pytest.raises(UserError, match=r"model.resolution=.*progressive.resolution=\(16, 24\)"):
        make_schedule(config, "resolution")


def test_a_saved_config_comes_back_whole_and_scales_from_its_own_base(tmp_path):
    config = small()
    config.model.update({"phi": 0.0, "base_width": 0.5, "base_depth": 0.3, "base_resolution": 50})
    config.model.update({"alpha": 1.3, "beta": 1.1, "gamma": 1.1, "dropout": 0.0})
    path = tmp_path / "scaling.json"
    path.write_text(config.to_json_best_effort())
    again = experiments.read(str(path))
    assert json.loads(again.to_json_best_effort()) == json.loads(path.read_text())
    assert again.is_locked
    scaled = experiments.read(f"{path}:phi=2").model
    assert models.coefficients(scaled).width == pytest.approx(0.5 * 1.1**2)
    assert models.coefficients(scaled).depth == pytest.approx(0.3 * 1.3**2)
    assert models.coefficients(scaled).resolution == pytest.approx(60.5, abs=0.5)  # 50 * 1.1^2
    assert scaled.dropout == 0.0
    assert experiments.read(f"{path}:b3").model.width == 1.2
    with pytest.raises(UserError, match="lite3 is not based on efficientnet"):
        experiments.read(f"{path}:lite3")
    with pytest.raises(UserError, match="can't read a config"):
        experiments.read(str(tmp_path / "none.json"))


def test_each_network_gets_its_best_rate(tmp_path):
    rates = make_schedule(small(), "rates:0.1,0.4,seeds:2,width:1,2")
    key = "optimizer.sgd.learning_rate"
    assert [each.run.name for each in rates[:2]] == ["width_1_seed0_lr0.1", "width_2_seed0_lr0.1"]
    assert len({each.run.label for each in rates}) == 4
    low, high = {1: (0.6, 0.5), 2: (0.8, 0.1)}, {1: (0.5, 0.5), 2: (0.5, 0.5)}  # By width.
    scores = {0.1: low, 0.4: high}
    rows = []
    for each in rates:
        width, config = relative(each, models.coefficients(small().model))[0], each.config
        score = scores[config.optimizer.sgd.learning_rate][round(width)][config.seed]
        values = {"val/ema/top1": score, "val/ema/count": 100, "train_minutes": 1}
        machine = {"jax": "1", "device": "cpu", "commit": "a", "time": "2026-11-27T10:00:00+00:00"}
        rows.append(each.row() | values | machine)
    path = tmp_path / "rates.csv"
    csv_rows.merge_csv(path, rows)
    tuned = make_schedule(small(), f"tuned:{path},seeds:2,width:1,2")
    assert [each.run.overrides[key] for each in tuned] == [0.1, 0.4, 0.1, 0.4]
    assert [each.run.name for each in tuned[:2]] == ["width_1_seed0", "width_2_seed0"]
    assert results.bare_name(tuned[0].sweep) == "width"
    sweeps = (f"tuned:{path},width:1,3", "tuned:width", "rates:0.1", "rates:width", "rates:0,width")
    for wrong in sweeps:
        with pytest.raises(UserError, match=r"width_3|needs|above 0"):
            make_schedule(small(), wrong)
