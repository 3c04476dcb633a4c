"""From CSV to figure: what is drawn is what the rows say."""

import pytest
from samples import methods, row, swept, write

from effnet_jax.report import figures, results, tables


@pytest.fixture
def read(tmp_path):
    return lambda rows, **kw: results.read([write(tmp_path / "rows.csv", rows)], **kw)


def curves(drawn, colour=None):
    """x and y of every line with markers that joins points, over all axes."""
    found = []
    for axes in drawn.figure.axes:
        for line in axes.get_lines():
            if line.get_linestyle() != "None" and line.get_marker() not in ("None", None, "_", "|"):
                found.append((list(line.get_xdata()), list(line.get_ydata())))
    return found


def texts(drawn):
    return [text.get_text() for axes in drawn.figure.axes for text in axes.texts]


def test_figure_8_has_the_real_costs_and_every_method_from_the_base(read):
    drawn = figures.figure8(read(methods()))
    lines = curves(drawn)
    assert len(lines) == 4
    for number, (x, y) in enumerate(lines):
        assert x == [3_000_000, 6_000_000 + 1000 * number, 12_000_000 + 1000 * number]
        assert y == pytest.approx([70, 76 + 0.5 * number, 80 + 0.5 * number])
    assert set(texts(drawn)) == {"width", "depth", "resolution", "compound", "base"}
    (axes,) = drawn.figure.axes
    dots = [tuple(dot) for collection in axes.collections for dot in collection.get_offsets()]
    assert (3_000_000, pytest.approx(69)) in dots  # Single seeds beside the mean.
    assert len(drawn.rows) == 9
    width = next(r for r in drawn.rows if r["label"] == "2x (w=1.5)" and r["series"] == "width")
    assert width["top1_mean"] == pytest.approx(0.76)
    assert width["top1_sd"] == pytest.approx(0.01)
    assert (width["n"], width["seeds"]) == (3, "0 1 2")
    assert "3 seeds per point" in drawn.caption


def test_error_bars_are_one_sample_deviation_and_only_where_there_are_seeds(read):
    several = figures.figure8(read(methods(3)))
    bars = [
        segment
        for collection in several.figure.axes[0].collections
        if hasattr(collection, "get_segments")
        for segment in collection.get_segments()
    ]
    assert bars
    assert all(high[1] - low[1] == pytest.approx(2) for low, high in bars)
    single = figures.figure8(read(methods(1)))
    assert not any(hasattr(c, "get_segments") for c in single.figure.axes[0].collections)
    assert "n = 1" in single.caption


def test_figure_3_has_a_panel_for_each_dimension_that_was_run(read):
    rows = [
        row(sweep=kind, series=kind, label=f"{kind[0]}={x}", multiply_adds=1000 * x, top1=top1)
        for kind in ("width", "depth")
        for x, top1 in ((5, 0.9), (1, 0.7), (2, 0.8))
    ]
    drawn = figures.figure3(read(rows))
    assert len(drawn.figure.axes) == 2
    for x, y in curves(drawn):  # In the order of cost, whatever the file's.
        assert (x, y) == ([1000, 2000, 5000], pytest.approx([70, 80, 90]))
    assert "w=5" in texts(drawn)
    assert "Not run: resolution" in drawn.caption


def test_figure_4_has_a_line_for_each_depth_and_resolution(read):
    rows = [
        row(sweep="width_at", series=f"d={d}, r=1.0", label=f"w={w}", multiply_adds=d * w)
        for d in (1, 2)
        for w in (100, 200)
    ]
    drawn = figures.figure4(read(rows))
    assert [x for x, _ in curves(drawn)] == [[100, 200], [200, 400]]


def test_the_paper_s_points_are_drawn_only_beside_imagenet(read):
    phi = {"sweep": "phi", "series": "compound", "label": "b0"}
    away = figures.figure5(read([row(**phi)]))
    assert [r["source"] for r in away.rows] == ["ours"]
    assert "not on cluttered_digits/test" in away.caption
    home = figures.figure5(read([row(**phi, data="imagenet2012/validation")]))
    empty = figures.figure5(results.Results())
    assert [r["source"] for r in home.rows].count("ours") == 1
    for drawn in (home, empty):
        curve = next(x for x, _ in curves(drawn) if len(x) == 8)
        assert curve[0] == 385_814_752  # Counted, not the 0.39 B that is printed.
        assert "GPipe" not in {r["label"] for r in drawn.rows if r["multiply_adds"]}
    assert "GPipe" in {r["label"] for r in figures.figure1(results.Results()).rows}


@pytest.mark.parametrize("figure", [figures.figure1, figures.figure5])
def test_figures_1_and_5_show_the_methods_where_phi_was_not_run(read, figure):
    drawn = figure(read(methods()))
    assert len(drawn.rows) == 9 and {r["source"] for r in drawn.rows} == {"ours"}
    (line,) = [y for x, y in curves(drawn) if len(x) == 3]  # The base, and compound scaling twice.
    assert line == pytest.approx([70, 77.5, 81.5])
    shown = [text.get_text() for text in drawn.figure.axes[0].get_legend().get_texts()]
    assert sorted(shown) == ["compound", "depth", "resolution", "width"]
    assert "the other methods of figure 8" in drawn.caption
    both = figure(read([*methods(), row(sweep="phi", series="compound", label="b0")]))
    assert [r["label"] for r in both.rows] == ["b0"]


def test_the_second_panel_of_figure_8_is_explained(read):
    rows = methods()
    low = [r | {"val/ema/top1": 0.4} if r["series"] == "depth" else r for r in rows]
    drawn = figures.figure8(read(low))
    assert "The lower panel shows the same points without depth, whose accuracy" in drawn.caption
    assert [axes.get_title() for axes in drawn.figure.axes] == ["", "without depth"]
    assert "lower panel" not in figures.figure8(read(rows)).caption


def test_transfer_takes_the_results_of_its_data_sets_side_by_side(read):
    phi = {"sweep": "phi", "series": "compound", "label": "b0"}
    rows = [row(**phi, data="cifar10/test", top1=0.98), row(**phi, data="cifar100/test")]
    drawn = figures.figure6(read(rows))
    ours = {r["data"]: r["top1_mean"] for r in drawn.rows if r["source"] == "ours"}
    assert ours == {"cifar10/test": 0.98, "cifar100/test": 0.75}
    assert "Ours: CIFAR-10" in drawn.caption
    assert "Not run: Birdsnap (configs/transfer.py:birdsnap,MODEL)" in drawn.caption


def test_a_sweep_is_drawn_over_the_key_that_it_changes(read):
    """With bars over seeds, in the order of the key's values."""
    key = "optimizer.sgd.learning_rate"
    rows = swept(f"{key}=0.1,1,0.001 seed=0,1", {key: "0.1"}, {key: "1.0"}, {key: "0.001"})
    drawn = figures.figure_sweeps(read(rows))
    (axes,) = drawn.figure.axes
    (x, y), *_ = curves(drawn)
    assert (x, y) == ([0.001, 0.1, 1], pytest.approx([61, 51, 56]))
    assert axes.get_xlabel() == key and axes.get_xscale() == "log"
    assert axes.get_title() == f"{key} on cluttered_digits/test"
    assert texts(drawn) == ["61.0"]  # The best.
    assert f"{key} on cluttered_digits/test: Top-1 of" in drawn.caption
    assert "The best mean: learning_rate=0.001. The bars of 0 of the other 2" in drawn.caption
    assert [r[key] for r in drawn.rows] == ["0.1", "1", "0.001"]
    assert [r["top1_mean"] for r in drawn.rows] == pytest.approx([0.51, 0.56, 0.61])


def test_equal_means_are_both_the_best(read):
    rows = swept("ema.decay=0,1", {"ema.decay": 0}, {"ema.decay": 1})
    rows = [each | {"val/ema/top1": 0.5} for each in rows]
    assert "The best mean: decay=0 and decay=1." in figures.figure_sweeps(read(rows)).caption


def test_a_sweep_of_several_keys_has_a_line_for_each_of_the_others_values(read):
    keys = ({"ema.decay": d, "epochs": e} for e in ("2.0", "10.0") for d in ("0.0", "0.5", "0.9"))
    names = swept("ema.decay=0,0.5,0.9 epochs=2,10", *keys)
    other = swept("optimizer.name=sgd,adamw", *({"optimizer.name": n} for n in ("sgd", "adamw")))
    drawn = figures.figure_sweeps(read(names + other))
    first, second = drawn.figure.axes
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["epochs=2", "epochs=10"]
    assert [x for x, _ in curves(drawn)][:2] == [[0, 0.5, 0.9]] * 2
    # No numbers: by name, the best on top.
    assert [label.get_text() for label in second.get_yticklabels()] == ["name=sgd", "name=adamw"]
    # Keys that change together, here without a grid, are no lines.
    pairs = [{"ema.decay": d, "epochs": e} for d, e in (("0.1", "1.0"), ("0.2", "2.0"))]
    (axes,) = figures.figure_sweeps(read(swept("mine.py", *pairs))).figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["decay=0.1, epochs=1", "decay=0.2, epochs=2"]
    assert axes.get_title() == "mine on cluttered_digits/test"


def test_sweeps_on_several_data_sets_are_drawn_apart(read):
    decays = [{"ema.decay": text} for text in ("0.5", "0.9")]
    rows = swept("ema.decay=0.5,0.9", *decays, data="f/val")
    rows = [each | {"val/identity": data} for data in ("9 records ab", "9 cd") for each in rows]
    found = read(rows)
    titles = [axes.get_title() for axes in figures.figure_sweeps(found).figure.axes]
    assert len(set(titles)) == 2 and all("on f/val [" in title for title in titles)
    table = tables.table_sweeps(found)
    assert [cells[:4] for cells in table.rows] == 2 * [
        ("decay=0.9", "56.00", "1.42", "2"),
        ("decay=0.5", "51.00", "1.42", "2"),
    ]


def test_fine_tuning_is_drawn_over_both_costs_with_a_line_over_networks(read):
    rows = [
        row(top1, sweep="seeds:2,fine_tuning:F", series=series, label=label, seed=seed, **costs)
        for series, label, parameters, multiply_adds, mean in (
            ("fine-tuned", "lite1", 4_000_000, 600_000_000, 0.88),
            ("fine-tuned", "lite0", 3_000_000, 400_000_000, 0.87),
            ("scratch", "lite0", 3_000_000, 400_000_000, 0.7),
        )
        for seed, top1 in enumerate((mean - 0.01, mean + 0.01))
        for costs in [{"parameters": parameters, "multiply_adds": multiply_adds}]
    ]
    found = read(rows)
    drawn = figures.figure_fine_tuning(found)
    assert [axes.get_xlabel() for axes in drawn.figure.axes] == ["multiply-adds", "parameters"]
    assert texts(drawn)[:2] == ["lite0", "lite1"]
    assert curves(drawn)[0] == ([400_000_000, 600_000_000], pytest.approx([87, 88]))
    assert "2 seeds per point" in drawn.caption
    assert [cells[:5] for cells in tables.table_fine_tuning(found).rows] == [
        ("fine-tuned", "lite1", "88.00", "1.42", "2"),
        ("fine-tuned", "lite0", "87.00", "1.42", "2"),
        ("scratch", "lite0", "70.00", "1.42", "2"),
    ]
    assert figures.figure_sweeps(found) is None


def test_the_grid_shows_every_candidate_with_its_cost_and_marks_the_best(read):
    rows = [
        row(sweep="seeds:2,grid", series="grid", label=label, seed=s, top1=t, multiply_adds=m)
        for label, m, pair in (
            ("1.2, 1.1, 1.15", 6_000_000, (0.8, 0.82)),
            ("2, 1, 1", 5_500_000, (0.7, 0.72)),
            ("1, 1, 1.4", 5_000_000, (0.79, 0.82)),
        )
        for s, t in enumerate(pair)
    ]
    drawn = figures.figure_grid(read(rows))
    names = [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()]
    assert names == ["2, 1, 1  (5.5 M)", "1, 1, 1.4  (5 M)", "1.2, 1.1, 1.15  (6 M)"]
    assert "best mean: 1.2, 1.1, 1.15" in drawn.caption
    assert "1 of the other 2 overlap" in drawn.caption


@pytest.mark.parametrize(
    "key", ["figure3", "figure4", "figure8", "figure_grid", "figure_sweeps", "figure_fine_tuning"]
)
def test_nothing_is_drawn_of_nothing(key):
    assert getattr(figures, key)(results.Results()) is None


def test_curves_show_what_the_last_fifth_of_the_training_changed(read):
    rows = [each | {"val/ema/top1 by epoch": ""} for each in methods(2)]
    assert figures.figure_curves(read(rows)) is None
    for each in rows:
        low = 0.2 + 0.02 * each["seed"]
        each["val/ema/top1 by epoch"] = f"1:{low} 4:{low + 0.4} 5:{low + 0.41}"
    drawn = figures.figure_curves(read(rows))
    assert "change by +1.0 to +1.0 points" in drawn.caption
    assert [axes.get_title("left") for axes in drawn.figure.axes] == ["1x", "2x", "4x"]
    first = [row for row in drawn.rows if row["series"] == "base"]
    assert [(row["epoch"], round(row["top1_mean"], 6)) for row in first] == [
        (1, 0.21),
        (4, 0.61),
        (5, 0.62),
    ]
