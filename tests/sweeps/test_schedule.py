"""Sweeps against what the paper and the grid say, and against their bad input."""

import json

import pytest

from configs import cluttered_digits, saved
from effnet_jax import config as default
from effnet_jax import models, scaling
from effnet_jax.errors import UserError
from effnet_jax.sweeps import schedule as plan
from effnet_jax.sweeps.schedule import Run


def b0():
    config = default.get_config("b0")
    config.model.num_classes = 1000
    return config


def small():
    config = cluttered_digits.get_config()
    config.model.num_classes = 10
    return config


def relative(planned: plan.Planned, base: scaling.Coefficients) -> tuple[float, float, float]:
    found = planned.coefficients
    return found.width / base.width, found.depth / base.depth, found.resolution / base.resolution


def test_candidates_are_those_found_by_hand():
    # Step 0.2, products by hand: 1 * (1 * 1.4)^2 = 1.96, 1 * (1.2 * 1.2)^2 = 2.0736,
    # 1.4 * 1.2^2 = 2.016, 2 * 1 = 2; 1.2 * 1.2^2 * 1 = 1.728 and 1.2 * 1.4^2 = 2.352 are too far.
    expected = {(1, 1, 1.4), (1, 1.2, 1.2), (1, 1.4, 1), (1.4, 1, 1.2), (1.4, 1.2, 1), (2, 1, 1)}
    assert set(scaling.candidates(step=0.2, tolerance=0.1)) == expected
    # The paper's own are a point of a grid with its spacing: 1.2 * 1.1^2 * 1.15^2 = 1.92.
    paper = scaling.candidates(step=0.05, tolerance=0.1)
    assert (1.2, 1.1, 1.15) in paper
    assert all(min(point) >= 1 for point in paper)
    assert all(abs(a * b**2 * g**2 - 2) <= 0.1 + 1e-9 for a, b, g in paper)
    assert len(set(paper)) == len(paper)


def test_a_grid_without_candidates_says_how_near_the_nearest_is():
    # 1 * 1 * 1.4^2 = 1.96 and 2 * 1 * 1 is off the grid's axis 1, 1.4, 1.8: 0.04 is the nearest.
    with pytest.raises(UserError, match=r"step 0.4 .* within 0.01 of 2; the nearest.* 0.04 off"):
        scaling.candidates(step=0.4, tolerance=0.01)
    with pytest.raises(UserError, match="step > 0"):
        scaling.candidates(step=0)
    with pytest.raises(UserError, match="over 100,000 points"):
        scaling.candidates(step=0.001)


def test_solve_finds_the_nearest_stair():
    def stairs(x):
        return int(x * 10)  # 20 from 2.0, 21 from 2.1.

    assert [stairs(scaling.solve(stairs, cost)) for cost in (3, 20.4, 20.6, 1000)] == [
        3,
        20,
        21,
        1000,
    ]


@pytest.mark.parametrize("config", [b0(), small()], ids=["b0", "small"])
def test_every_method_costs_the_same_within_5_percent(config):
    planned = plan.make_plan(config, "methods")
    base = planned[0].cost.multiply_adds
    names = {"width": 0, "depth": 1, "resolution": 2}
    assert [p.run.name for p in planned][:3] == ["base", "width_2x", "depth_2x"]
    assert len(planned) == 9
    for level in (planned[1:5], planned[5:]):
        costs = [each.cost.multiply_adds / base for each in level]
        middle = (min(costs) + max(costs)) / 2
        assert costs == pytest.approx([middle] * 4, rel=0.05)
        multiple = float(level[0].run.name.rpartition("_")[2][:-1])
        assert middle == pytest.approx(multiple, rel=0.15 if base < 1e7 else 0.05)
    for each in planned[1:]:
        ratios = relative(each, planned[0].coefficients)
        if each.run.series in names:  # One dimension grows, the others stay.
            grown = names[each.run.series]
            assert ratios[grown] > 1.2
            assert [r for i, r in enumerate(ratios) if i != grown] == pytest.approx([1, 1])
        else:
            assert min(ratios) > 1


def test_methods_also_scale_by_the_paper_s_coefficients_where_others_were_found():
    config = b0()
    config.model.alpha = 1.3
    series = [planned.run.series for planned in plan.make_plan(config, "methods:2")]
    assert series == ["base", "width", "depth", "resolution", "compound", "compound_paper"]
    names = [planned.run.name for planned in plan.make_plan(config, "methods:width,2,compound")]
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
        planned = plan.make_plan(b0(), name)
        found = [relative(each, base) for each in planned]
        assert [ratios[dimension] for ratios in found] == pytest.approx(expected, rel=2e-3)
        others = [r for ratios in found for i, r in enumerate(ratios) if i != dimension]
        assert others == [1] * (2 * len(expected))
    assert plan.make_plan(b0(), "resolution")[-1].coefficients.resolution == 560
    lines = {each.run.series for each in plan.make_plan(b0(), "width_at")}
    assert lines == {f"d={d}, r={r}" for d in ("1.0", "2.0") for r in ("1.0", "1.3")}


def test_table_7_and_the_published_models_cost_what_the_reference_counts():
    # reference/paper_table7_cam_scaling.csv, our count with the standard rounding.
    counts = [planned.cost.multiply_adds for planned in plan.make_plan(b0(), "table7")]
    expected = [0.3858e9, 1.5751e9, 1.45e9, 1.5375e9, 1.8001e9]
    assert counts == pytest.approx(expected, rel=2e-3)
    planned = plan.make_plan(b0(), "phi")
    assert [each.run.name for each in planned] == [*(f"b{i}" for i in range(8)), "phi=8"]
    assert planned[7].cost.parameters == 66_347_960  # B7, reference/param_counts.csv.
    assert plan.make_plan(b0(), "phi:0")[0].cost == planned[0].cost


def test_phi_scales_other_bases_by_number_alone():
    config = default.get_config("resnet50")
    config.model.num_classes = 1000
    planned = plan.make_plan(config, "phi")
    assert len(planned) == 8 and {each.config.model.base for each in planned} == {"resnet50"}
    assert planned[0].cost.parameters == 25_557_032
    with pytest.raises(UserError, match="b0 is no resnet50"):
        plan.make_plan(config, "phi:b0,1")


def test_phi_knows_the_published_models_of_the_config_s_base():
    config = default.get_config("v2-b0")
    config.model.num_classes = 1000
    config.model.batch_norm_momentum = 0.95
    planned = plan.make_plan(config, "phi:v2-b0,v2-b3,1")
    assert [each.run.name for each in planned] == ["v2-b0", "v2-b3", "phi=1"]
    assert planned[1].cost.parameters == 14_358_406  # reference/param_counts.csv.
    assert planned[1].config.model.dropout == 0.3
    assert {each.config.model.batch_norm_momentum for each in planned} == {0.95}
    with pytest.raises(UserError, match="v2-s is no efficientnet_v2; name its scales by number"):
        plan.make_plan(config, "phi:v2-b0,v2-s")


def test_a_sweep_file_of_the_user_s_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("x = 1")
    with pytest.raises(UserError, match="needs a function get_sweep"):
        plan.make_plan(small(), str(path))
    path.write_text("def get_sweep(")
    with pytest.raises(UserError, match="can't load sweep file"):
        plan.make_plan(small(), str(path))


def test_table_3_scales_the_other_bases():
    planned = {each.run.name: each for each in plan.make_plan(b0(), "table3")}
    assert len(planned) == 4 + 5 + 5
    for base, billions in (("mobilenet_v1", 0.57), ("mobilenet_v2", 0.30), ("resnet50", 4.09)):
        assert planned[f"{base}_baseline"].cost.multiply_adds == pytest.approx(
            billions * 1e9, rel=0.01
        )
        assert planned[f"{base}_baseline"].config.model.survival_probability == 1.0
    with pytest.raises(UserError, match="unknown base of table 3 'resnet'"):
        plan.make_plan(b0(), "table3:resnet")


def test_seeds_repeat_a_sweep():
    planned = plan.make_plan(small(), "seeds:2,depth:1,2")
    names = ["depth_1_seed0", "depth_2_seed0", "depth_1_seed1", "depth_2_seed1"]
    assert [each.run.name for each in planned] == names
    assert [each.config.seed for each in planned] == [0, 0, 1, 1]
    assert planned[0].run.label == planned[2].run.label
    for wrong in ("seeds", "seeds:2", "seeds:0,depth", "seeds:x,depth"):
        with pytest.raises(UserError, match="count and a sweep"):
            plan.make_plan(small(), wrong)


def test_an_equal_grid_meets_the_multiply_adds_that_a_plain_one_misses():
    base = plan.make_plan(small(), "depth:1")[0].cost.multiply_adds

    def worst(sweep):
        costs = [each.cost.multiply_adds / base / 2 for each in plan.make_plan(small(), sweep)]
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
        "missing.py": "no sweep file missing.py",
        "phi:b0,x": "unknown model 'x'",
        "methods:2,widht": "unknown method 'widht'; did you mean: width",
        "depth:900": "run 'depth_900': width, depth",
    }
    for sweep, message in cases.items():
        with pytest.raises(UserError, match=message):
            plan.make_plan(small(), sweep)

    def planned(*runs):
        monkeypatch.setattr(plan, "expand", lambda config, sweep: iter(runs))
        return plan.make_plan(small(), "mine")

    with pytest.raises(UserError, match=r"sets config.model.widht.*did you mean.*model.width"):
        planned(Run("a", "", "", {"model.widht": 2.0}))
    with pytest.raises(UserError, match=r"sets config.epochs='two'"):
        planned(Run("a", "", "", {"epochs": "two"}))
    with pytest.raises(UserError, match=r"run .a.: config.batch_size must be at least 1"):
        planned(Run("a", "", "", {"batch_size": -3}))
    with pytest.raises(UserError, match=r"run .a.: unknown config.optimizer.name 'sdg'"):
        planned(Run("a", "", "", {"optimizer.name": "sdg"}))
    with pytest.raises(UserError, match="two runs with the name 'a'"):
        planned(Run("a", "", "", {}), Run("a", "", "", {"seed": 1}))
    with pytest.raises(UserError, match="can't be the name of a folder"):
        planned(Run("a/b", "", "", {}))
    with pytest.raises(UserError, match="has no runs"):
        planned()


def test_stages_that_a_scale_would_not_reach_are_refused():
    config = small()
    config.progressive.resolution = (16, 24)
    with pytest.raises(UserError, match=r"model.resolution=.*progressive.resolution=\(16, 24\)"):
        plan.make_plan(config, "resolution")


def test_a_saved_config_comes_back_whole_and_scales_from_its_own_base(tmp_path):
    config = small()
    config.model.update({"phi": 0.0, "base_width": 0.5, "base_depth": 0.3, "base_resolution": 50})
    config.model.update({"alpha": 1.3, "beta": 1.1, "gamma": 1.1, "dropout": 0.0})
    path = tmp_path / "scaling.json"
    path.write_text(config.to_json_best_effort())
    again = saved.get_config(str(path))
    assert json.loads(again.to_json_best_effort()) == json.loads(path.read_text())
    assert again.is_locked
    scaled = saved.get_config(f"{path},phi=2").model
    assert models.coefficients(scaled).width == pytest.approx(0.5 * 1.1**2)
    assert models.coefficients(scaled).depth == pytest.approx(0.3 * 1.3**2)
    assert models.coefficients(scaled).resolution == pytest.approx(60.5, abs=0.5)  # 50 * 1.1^2
    assert scaled.dropout == 0.0
    assert saved.get_config(f"{path},b3").model.width == 1.2
    with pytest.raises(UserError, match="lite3 is no efficientnet"):
        saved.get_config(f"{path},lite3")
    with pytest.raises(UserError, match="can't read a config"):
        saved.get_config(str(tmp_path / "none.json"))
