"""Rows of results become points: the right ones together, with the right mean and spread."""

import pytest
from conftest import read_golden
from samples import row, swept, write

from effnet_jax.errors import UserError
from effnet_jax.report import paper, results


def test_mean_and_sample_deviation_are_those_by_hand(tmp_path):
    path = write(tmp_path / "a.csv", [row(seed=s, top1=t) for s, t in ((2, 0.8), (0, 0.7))])
    write(tmp_path / "deep" / "er" / "b.CSV", [row(seed=1, top1=0.9)])
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
        ("optimizer.sgd.learning_rate=0.1,0.2 seed=0,1", "optimizer.sgd.learning_rate"),
        ("seeds:2,ema.decay=0.5  epochs=1,2", "ema.decay epochs"),
        ("epochs=1,2 ema.decay=0.5", "ema.decay epochs"),
        ("mine/width.py:3", "width.py"),
        ("eval.py", "eval.py"),
        ("mine/rates.py:3", "rates"),
        ("seed=0,1", "seed"),
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


def test_data_sets_of_one_name_are_never_mixed(tmp_path):
    """With equal seeds none of them counts as repeated."""
    one, two = (
        {"val/identity": text, "train/identity": text}
        for text in ("9 records 00112233", "9 records 44556677")
    )
    path = write(tmp_path / "a.csv", [row(data="f/val") | one, row(0.5, data="f/val") | two])
    found = results.read([path])
    assert (len(found.runs), found.repeated) == (2, 0)
    with pytest.raises(UserError, match=r"different data sets: f/val \[\w{8}\] \(1 runs\), f/val"):
        found.points("figure 8", "methods")
    name = found.runs[0].data
    for data in (name, "00112233"):
        (point,) = results.read([path], data=data).points("figure 8", "methods")
        assert (point.data, point.mean, point.n) == (name, 0.75, 1)
    with pytest.raises(UserError, match="would mix"):
        results.read([path], data="f/val").points("figure 8", "methods")
    # Rows of earlier releases, which don't say, are of neither.
    path = write(tmp_path / "a.csv", [row(data="f/val") | one, row(data="f/val", seed=1)])
    with pytest.raises(UserError, match=r"f/val \[unknown\]"):
        results.read([path]).points("figure 8", "methods")
    # With one identity, names are as they were, also where another split was trained on.
    path = write(tmp_path / "a.csv", [row(seed=s, data="f/val") | one for s in (0, 1)])
    assert results.read([path]).points("figure 8", "methods")[0].data == "f/val"
    path = write(tmp_path / "a.csv", [row() | one, row(seed=1) | one | {"train/identity": "8 e"}])
    with pytest.raises(UserError, match="differ by more than their seed: trained_on 9 records"):
        results.read([path]).points("figure 8", "methods")


def test_runs_that_a_sweep_changes_are_points_of_their_own(tmp_path):
    """Also where a sweep's file gives all of them one label."""
    rates = [{"ema.decay": text} for text in ("0.5", "0.50", "0.9")]
    rows = [r | {"label": ""} for r in swept("mine.py", *rates)]
    found = results.read([write(tmp_path / "a.csv", rows)])
    assert found.repeated == 2  # 0.50 is 0.5.
    (points,) = found.own("here").values()
    assert [(dict(p.runs[0].swept), p.n) for p in points] == [
        ({"ema.decay": "0.5"}, 2),
        ({"ema.decay": "0.9"}, 2),
    ]


def test_other_recipes_are_other_sweeps(tmp_path):
    """The same values were swept twice, with other values of a key that both runs had alike."""
    first, second = (swept("ema.decay=0.5", {"ema.decay": "0.5"}) for _ in range(2))
    rows = [r | {"recipe": "a"} for r in first] + [r | {"recipe": "b"} for r in second]
    found = results.read([write(tmp_path / "a.csv", rows)])
    titles = ["ema.decay on cluttered_digits/test", "ema.decay on cluttered_digits/test, recipe b"]
    assert list(found.own("here")) == titles and found.repeated == 0
    assert [len(points) for points in found.own("here").values()] == [1, 1]
    rows = [row() | {"recipe": "a"}, row(seed=1) | {"recipe": "b"}]
    with pytest.raises(UserError, match="differ by more than their seed: recipe a and b"):
        results.read([write(tmp_path / "a.csv", rows)]).points("figure 8", "methods")


def test_what_a_spreadsheet_saves_is_read_or_refused_by_name(tmp_path):
    path = write(tmp_path / "a.csv", [row(), row(seed=1)])
    expected = results.read([path]).runs
    text = path.read_text()
    for saved in (
        text.replace(",", ";"),
        text.replace(",", "\t"),
        "\ufeff" + text.replace("\n", ",,\r\n") + "," * 40 + "\r\n",
    ):
        path.write_text(saved, encoding="utf-8", newline="")
        assert results.read([tmp_path]).runs == expected
    path.write_text(text * 2)  # One file after the other, with its header.
    assert results.read([tmp_path]).runs == expected
    path.write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=r"can't read .*a\.csv: it is not UTF-8 text; save it"):
        results.read([tmp_path])
    for old, new, message in (
        ("2026-11-22T10:00:00+00:00", "22/11/2026 10:00", r"a.csv, line 2: time is '22/11/2026 1"),
        (",0.75,", ',"0,75",', r"a.csv, line 2: val/ema/top1 is '0,75', not a number"),
        ("sweep,name", "seed,name", r"a.csv has the column 'seed' twice"),
        (",0.75,", ",0,75,", r"a.csv, line 2 has more cells than the file has columns"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            results.read([tmp_path])


def test_of_two_repeats_the_later_time_counts_whatever_its_zone(tmp_path):
    early = "2026-11-22T10:00:00+05:00"  # 05:00 in UTC.
    rows = [row(0.8, time="2026-11-22T09:00:00+00:00"), row(0.9, time=early)]
    (point,) = results.read([write(tmp_path / "a.csv", rows)]).points("here", "methods")
    assert point.mean == 0.8


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
    header = tmp_path / "header.csv"
    header.write_text((tmp_path / "a.csv").read_text().partition("\n")[0])
    # An editor's copy, whose rows its user may have removed since, and a file of the system.
    write(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.csv", [row(seed=1)])
    (tmp_path / "._a.csv").write_bytes(b"\x00\x05\x16\x07\xff")
    found = results.read([tmp_path])
    assert (len(found.runs), found.files) == (1, (tmp_path / "a.csv",))
    why = "(no column 'sweep')"
    others = f"{other} {why}", f"{tmp_path / 'empty.csv'} {why}", f"{header} (no rows)"
    assert found.skipped == others
    assert results.read([header]).skipped == others[2:]
    with pytest.raises(UserError, match=r"benchmark_model\.csv is not a results file"):
        results.read([tmp_path, other])
    with pytest.raises(UserError, match="check the path of the results"):
        results.read([tmp_path / "none"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1": 75.0}, "line 2: val/ema/top1 is 75.0; accuracies are fractions"),
        ({"top1": "nan"}, "line 2: val/ema/top1 is nan"),
        ({"multiply_adds": "6M"}, "line 2: multiply_adds is '6M', not a whole number"),
        ({"seed": ""}, "line 2: seed is '', not a whole number"),
        ({"parameters": "1.94E+06"}, r"line 2: parameters is '1.94E\+06', not a whole number"),
        ({"parameters": "304.000"}, "line 2: parameters is '304.000', not a whole number"),
        ({"train_minutes": "nan"}, "line 2: train_minutes is nan, which is not finite"),
        ({"train_minutes": "-3"}, "line 2: train_minutes is -3, but must be 0 or more"),
        ({"epochs": "inf"}, "line 2: epochs is inf, which is not finite"),
        ({"epochs": ""}, "line 2 has neither epochs nor steps"),
        ({"multiply_adds": 0}, "line 2: multiply_adds is 0, but must be above 0"),
        ({"val/ema/count": 0}, "line 2: val/ema/count is 0, but must be above 0"),
        ({"alpha": "nan"}, "line 2: alpha is nan"),
        ({"val/ema/count": 0.5}, "line 2: val/ema/count is '0.5', not a whole number"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        results.read([write(tmp_path / "a.csv", [row(**changes)])])


def test_values_are_alike_however_two_sweeps_wrote_them(tmp_path):
    """Also the keys' order, and what a spreadsheet makes of a value."""
    key, flip = {"config.a.rate": "1e-05"}, {"config.a.flip": "True"}
    first = row(sweep="a.rate=1e-5 a.flip=True", label="rate=1e-5") | key | flip
    key, flip = {"config.a.rate": "0.00001"}, {"config.a.flip": "TRUE"}
    second = row(sweep="a.flip=True a.rate=0.00001", label="flip=True", seed=1) | key | flip
    found = results.read([write(tmp_path / "a.csv", [first, second])])
    (points,) = found.own("here").values()
    assert [point.n for point in points] == [2]
    # A seed that was run twice is no second measurement.
    assert results.read([write(tmp_path / "a.csv", [first, second | {"seed": 0}])]).repeated == 1
    with pytest.raises(UserError, match=r"line 2: config\.a\.rate is '0,1', a number with"):
        results.read([write(tmp_path / "a.csv", [first | {"config.a.rate": "0,1"}])])


def test_sets_of_unknown_identity_are_apart_by_their_images(tmp_path):
    rows = [row(), row(seed=1) | {"val/ema/count": 1500}]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(UserError, match=r"\[unknown, 2000 images\] \(1 runs\), .*1500 images"):
        results.read([path]).points("figure 8", "methods")
    assert len(results.read([path], data="1500").points("figure 8", "methods")) == 1
    # What an older file lacks is called unknown.
    path = write(tmp_path / "a.csv", [row(), row(seed=1) | {"recipe": "ab"}])
    with pytest.raises(UserError, match="more than their seed: recipe unknown and ab"):
        results.read([path]).points("figure 8", "methods")


def test_weights_that_were_not_evaluated_are_told(tmp_path):
    path = write(tmp_path / "a.csv", [row(top1="")])
    with pytest.raises(UserError, match="--evaluation=val/raw"):
        results.read([path]).points("figure 8", "methods")
    assert results.read([path], "val/raw").points("figure 8", "methods")[0].mean == 0.5


def test_the_paper_s_table_3_is_the_golden_one():
    assert paper.read("table3") == read_golden("table3.csv")
