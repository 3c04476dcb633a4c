"""Rows of results become points: the right ones together, with the right mean and spread."""

import pytest
from conftest import read_golden
from samples import row, write

from effnet_jax.errors import UserError
from effnet_jax.report import paper, results


def test_mean_and_sample_deviation_are_those_by_hand(tmp_path):
    path = write(tmp_path / "a.csv", [row(seed=s, top1=t) for s, t in ((2, 0.8), (0, 0.7))])
    write(tmp_path / "deep" / "er" / "b.csv", [row(seed=1, top1=0.9)])
    (point,) = results.read([tmp_path]).points("here", "methods")
    assert point.top1 == (0.7, 0.9, 0.8)  # By seed.
    assert point.mean == pytest.approx(0.8)
    assert point.sd == pytest.approx(0.1)  # sqrt((0.01 + 0.01 + 0) / 2)
    assert point.n == 3
    (raw,) = results.read([path], "val/raw").points("here", "methods")
    assert (raw.mean, raw.n) == (0.5, 2)
    (alone,) = results.read([tmp_path / "deep"]).points("here", "methods")
    assert (alone.n, alone.sd) == (1, None)


@pytest.mark.parametrize(
    ("sweep", "kind"),
    [
        ("methods", "methods"),
        ("methods:2,4", "methods"),
        ("seeds:3,methods", "methods"),
        ("seeds:2,grid:step=0.1,equal=1", "grid"),
        ("seeds:2,seeds:3,width:1,2", "width"),
        ("configs/sweeps/width_at.py:1,2", "width_at"),
    ],
)
def test_the_inner_sweep_counts(sweep, kind):
    assert results.bare_name(sweep) == kind


def test_seeds_of_two_sweeps_meet_in_one_point(tmp_path):
    write(tmp_path / "a.csv", [row(seed=0)])
    write(tmp_path / "b.csv", [row(sweep="seeds:2,methods:2", seed=s) for s in (1, 2)])
    (point,) = results.read([tmp_path]).points("here", "methods")
    assert point.n == 3


def test_a_repeated_seed_is_no_second_measurement(tmp_path):
    rows = [row(top1=0.9), row(top1=0.8, time="2026-11-23T10:00:00+00:00")]
    path = write(tmp_path / "a.csv", rows)
    found = results.read([path, tmp_path])  # The file is read once.
    (point,) = found.points("here", "methods")
    assert (point.n, point.mean, found.repeated) == (1, 0.8, 1)


def test_data_sets_are_never_mixed(tmp_path):
    rows = [row(), row(data="imagenet2012/validation"), row(data="imagenet2012/validation", seed=1)]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(UserError) as error:
        results.read([path]).points("figure 8", "methods")
    for part in ("figure 8", "cluttered_digits/test (1", "imagenet2012/validation (2", "--data="):
        assert part in str(error.value)
    (point,) = results.read([path], data="imagenet2012/validation").points("figure 8", "methods")
    assert point.n == 2
    with pytest.raises(UserError, match="imagenet2012/validation"):
        results.read([path], data="imagenet2012/val")


@pytest.mark.parametrize(
    "change", [{"epochs": 9.0}, {"multiply_adds": 5}, {"base": "resnet18"}, {"width": 2.0}]
)
def test_runs_that_differ_by_more_than_seed_are_never_pooled(tmp_path, change):
    path = write(tmp_path / "a.csv", [row(), row(seed=1, **change)])
    with pytest.raises(UserError, match=f"differ by more than their seed: {next(iter(change))}"):
        results.read([path]).points("figure 8", "methods")


def test_other_tables_are_passed_over_in_a_folder_alone(tmp_path):
    write(tmp_path / "a.csv", [row()])
    other = tmp_path / "benchmark_model.csv"
    other.write_text("model,mode\nb0,train\n")
    (tmp_path / "empty.csv").touch()
    found = results.read([tmp_path])
    assert (len(found.runs), found.files) == (1, (tmp_path / "a.csv",))
    with pytest.raises(UserError, match=r"benchmark_model\.csv is no table of results"):
        results.read([tmp_path, other])
    with pytest.raises(UserError, match="--results"):
        results.read([tmp_path / "none"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1": 75.0}, "line 2: val/ema/top1 is 75.0; accuracies are fractions"),
        ({"top1": "nan"}, "line 2: val/ema/top1 is nan"),
        ({"multiply_adds": "6M"}, "line 2: multiply_adds is '6M', no number"),
        ({"seed": ""}, "line 2: seed is '', no number"),
        ({"val/ema/count": 0.5}, "line 2: val/ema/count is '0.5', no number"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        results.read([write(tmp_path / "a.csv", [row(**changes)])])


def test_weights_that_were_not_evaluated_are_told(tmp_path):
    path = write(tmp_path / "a.csv", [row(top1="")])
    with pytest.raises(UserError, match="--evaluation=val/raw"):
        results.read([path]).points("figure 8", "methods")
    assert results.read([path], "val/raw").points("figure 8", "methods")[0].mean == 0.5


def test_the_paper_s_table_3_is_the_golden_one():
    assert paper.read("table3") == read_golden("table3.csv")
