"""The report as a person would make it, and the tables in it."""

import csv
import html
import pathlib
import re
import time
import warnings

import numpy as np
import pytest
from conftest import GOLDEN, read_golden
from matplotlib.figure import Figure
from PIL import Image
from samples import EVALUATIONS, methods, row, swept, write

from effnet_jax import weights
from effnet_jax.errors import UserError
from effnet_jax.explain import drawing as explained
from effnet_jax.report import curves, drawing, figures, maps, page, paper, pictures, results, tables
from effnet_jax.tools import report


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def call(*arguments: str, draw: bool = False) -> pathlib.Path:
        out = tmp_path / "out"
        if not draw:  # Rendering takes most of the time.
            monkeypatch.setattr(Figure, "savefig", lambda self, file, **kw: file.write(b"PNG"))
        report.main(report.PARSER.parse_args([f"--out={out}", *arguments]))
        assert str(out / "index.html") in capsys.readouterr().out
        return out

    return call


def test_empty_results_give_a_page_that_says_what_to_run(run, tmp_path):
    (tmp_path / "none").mkdir()
    out = run(f"--results={tmp_path / 'none'}")
    page = html.unescape((out / "index.html").read_text())
    for sweep in ("phi", "width", "depth", "resolution", "width_at", "seeds:3,methods", "table3"):
        assert "effnet-jax sweep --config=configs/" in page
        assert f"--sweep={sweep} " in page
    assert "python -m benchmarks latency" in page
    assert "not run" in page
    assert (out / "figure1.png").exists()  # The paper's own points.
    assert not (out / "figure8.png").exists()


def test_the_report_is_whole_and_stands_alone(run, tmp_path):
    path = write(tmp_path / "results" / "methods.csv", methods())
    start = time.perf_counter()
    out = run(f"--results={path}", draw=True)
    assert time.perf_counter() - start < 20
    page = (out / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page) == []
    assert not re.search(r"https?://|<script|<link|url\(", page)
    assert 'name="viewport"' in page
    for text in ("cluttered_digits/test", "abc", "0.10.2", "2026-11-22T10:00:00", "methods.csv"):
        assert text in page
    for name in ("figure8.csv", "table_methods.csv", "table1.csv", "table7.csv"):
        assert (out / name).stat().st_size > 0
    for name in ("figure1.png", "figure8.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    with open(out / "figure8.csv", newline="") as file:
        drawn = list(csv.DictReader(file))
    expected = {run["multiply_adds"] for run in methods()}
    assert {int(point["multiply_adds"]) for point in drawn} == expected
    with open(out / "table_methods.csv", newline="") as file:
        assert {int(cells["multiply-adds"]) for cells in csv.DictReader(file)} == expected


def test_a_small_report_is_drawn_without_a_warning(run, tmp_path, monkeypatch):
    """Names wider than the figure left no room for its axes, which then were drawn over names."""
    monkeypatch.setattr(drawing, "DPI", 30)  # The layout is the same, and made faster.
    one = row(sweep="grid", series="grid", label="1.2, 1.1, 1.15")
    networks = [{"model.base": f"a_base_network_with_a_long_name_{n}"} for n in range(2)]
    keys = [each | {"data.data_dir": "/data/of/a/user/photographs"} for each in networks]
    rows = [*methods(1)[:3], one, *swept("networks.py", *keys, {"model.base": "b"})]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(f"--results={write(tmp_path / 'a.csv', rows)}", draw=True)


def test_a_new_report_leaves_nothing_of_the_old_and_spares_what_is_not_its_own(run, tmp_path):
    full = write(tmp_path / "a.csv", methods())
    out = run(f"--results={full}")
    (out / "mine.txt").write_text("x")
    empty = write(tmp_path / "b.csv", [])
    run(f"--results={empty}")
    assert not (out / "figure8.png").exists()
    assert (out / "mine.txt").exists()
    (out / "index.html").write_text("<html>somebody's</html>")
    with pytest.raises(UserError, match="choose another --out"):
        run(f"--results={empty}")


def test_out_must_not_be_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be a folder"):
        report.main(report.PARSER.parse_args([f"--out={tmp_path / 'file'}"]))


def test_a_sweep_of_the_user_s_own_is_on_the_page_before_the_paper_s(run, tmp_path, capsys):
    key = "optimizer.sgd.learning_rate"
    rows = swept(f"{key}=0.1,0.2", {key: "0.1"}, {key: "0.2"})
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "other.csv").write_text("a,b\n1,2\n")
    write(tmp_path / "rows" / "a.csv", [*rows, rows[0]])
    out = tmp_path / "out"
    report.main(report.PARSER.parse_args([f"--out={out}", f"--results={tmp_path / 'rows'}"]))
    page, printed = (out / "index.html").read_text(), capsys.readouterr().out
    assert page.index("Your sweeps in numbers") < page.index("Table 1")
    assert "<td>learning_rate=0.2</td><td>56.00</td>" in page
    assert (out / "figure_sweeps.png").exists()
    assert f"{key},source" in (out / "figure_sweeps.csv").read_text()
    for text in (printed, page):
        assert "other.csv (no column" in text
    assert "replaced by newer ones with the same seed" in printed
    assert "replaced by newer ones with the same seed" in page
    out = run(f"--results={write(tmp_path / 'b.csv', [])}")
    assert "Your sweeps" not in (out / "index.html").read_text()


def test_every_sweep_of_the_paper_is_known_as_such():
    sweeps = (sweep for each in page.SECTIONS.values() for sweep in each.get("sweeps", ()))
    assert set(map(results.bare_name, sweeps)) == set(results.PAPER)


def test_labels_can_not_break_the_page(run, tmp_path):
    rows = [row(series="<b>bold</b>", label="1x <script>", data="a&b/test")]
    page = (run(f"--results={write(tmp_path / 'a.csv', rows)}") / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;b&gt;bold" in page
    assert "1 runs in older files" in " ".join(page.split())


def test_dollar_signs_in_names_are_no_formulas(run, tmp_path):
    """That of a run or a value ended a figure in a traceback."""
    odd = r"$\odd{$"
    rows = swept("a.b=1", {"a.b": odd, "c": "1"}, {"a.b": odd, "c": "2"}, {"a.b": "x", "c": "1"})
    out = run(f"--results={write(tmp_path / 'a.csv', rows)}", draw=True)
    assert (out / "figure_sweeps.png").stat().st_size
    curves.draw_curves([{"epoch": 1.0, "val/ema/loss": 1.5}], tmp_path / "a.png", odd)
    image = np.zeros((8, 8, 3), np.uint8)
    explained.draw([[(image, None, odd)]]).savefig(tmp_path / "b.png")
    pictures.draw([image], [[image]], [odd], odd).savefig(tmp_path / "c.png")


def test_table_1_is_the_paper_s():
    table = tables.table1(results.Results())
    assert [cells[-1] for cells in table.rows] == ["the same"] * 9


def test_table_2_counts_equal_the_golden_ones():
    golden = {model["model"]: model for model in read_golden("param_counts.csv")}
    rows = tables.table2(results.Results()).rows
    assert len(rows) == 8
    for cells in rows:
        expected = golden[cells[0].lower()]
        assert int(cells[1].replace(",", "")) == int(expected["trainable_params"])
        count = expected["multiply_adds_at_res(conv+se+fc)"]
        assert int(cells[3].replace(",", "")) == int(count)
        assert cells[5] == "not run"
    assert rows[0][6:] == ("77.1", "76.882")


def test_table_2_takes_imagenet_and_the_right_network_alone(tmp_path):
    b0 = {"sweep": "phi", "series": "compound", "label": "b0"}
    real = {"parameters": 5_288_548, "multiply_adds": 385_814_752}

    def ours(**changes):
        path = write(tmp_path / "a.csv", [row(**b0, **changes)])
        return tables.table2(results.read([path])).rows[0][5]

    assert ours(**real, data="imagenet2012/validation") == "75.00 (n = 1)"
    assert ours(**real) == "not run"
    assert ours(**real, data="imagenet2012/train[99%:]") == "not run"
    assert ours(data="imagenet2012/validation") == "not run"


def test_measured_figures_are_rounded_against_us(tmp_path):
    assert tables.down(76.9999) == "76.99"
    assert tables.down(100 * 0.771) == "77.10"  # 77.09999999999999 is float error.
    assert tables.down(-0.001) == "-0.01"
    assert tables.up(0.1201) == "0.13"
    assert tables.up(0.07 * 100, 1) == "7.0"


def test_the_table_of_methods_compares_with_the_base(tmp_path):
    found = results.read([write(tmp_path / "a.csv", methods())])
    rows = tables.table_methods(found).rows
    assert [cells[0] for cells in rows[:3]] == ["base", "compound", "resolution"]
    assert rows[1][2:7] == ("77.50", "1.00", "3", "6,003,000", "2.001x")
    assert rows[0][6] == "1.000x"


def test_the_lead_of_compound_scaling_has_its_interval_by_hand(tmp_path):
    # Means 1.5 points apart, deviations of 1 with 3 seeds each: 1.5 +- 2.776 sqrt(1/3 + 1/3).
    found = results.read([write(tmp_path / "rows.csv", methods())])
    cells = {row[:2]: row[-1] for row in tables.table_methods(found).rows}
    assert cells["width", "4x (w=1.5)"] == "+1.50 (-0.77 to +3.77)"
    assert cells["compound", "4x (c=1.5)"] == "" and cells["base", "1x"] == ""
    single = results.read([write(tmp_path / "rows.csv", methods(1))])
    assert {row[-1] for row in tables.table_methods(single).rows} == {""}


def test_table_4_divides_only_what_one_machine_measured(tmp_path):
    header = "model,resolution,batch,latency_ms,latency_ms_min,latency_ms_max,threads,device,time"

    def table(threads):
        path = tmp_path / "latency.csv"
        lines = ["b1,240,1,50.04,49,51,1,cpu,2026-11-02"]
        lines += [f"resnet152,224,1,299,298,300,{threads},cpu,2026-11-01"]
        path.write_text("\n".join([header, *lines]) + "\n")
        return {cells[0]: cells for cells in tables.table4(results.read([path])).rows}

    rows = table(1)
    assert rows["EfficientNet-B1"][1:4:2] == ("50.1 ms (49.0 to 51.0)", "5.9x")
    assert rows["EfficientNet-B7"][1] == "not run"
    assert rows["GPipe"][1] == "not implemented"
    assert table(2)["EfficientNet-B1"][3] == ""
    path = tmp_path / "latency.csv"
    good = path.read_text()
    for text in ("", "nan", '"50,04"', "0"):
        path.write_text(good.replace("50.04", text))
        with pytest.raises(UserError, match=r"latency\.csv, line 2: latency_ms is "):
            results.read([path])


def test_table_5_takes_rows_of_evaluations_by_data_set_split_and_metric(tmp_path):
    path = tmp_path / "transfer.csv"
    path.write_text(EVALUATIONS)
    grid = row(data="oxford_flowers102/validation", sweep="kornblith", top1=0.99)
    seeds = [
        row(data="cifar10/test", sweep="seed=0,1", seed=seed, top1=0.5, width=1.0, depth=1.0)
        for seed in (0, 1)
    ]
    read = results.read([path, write(tmp_path / "sweep.csv", [grid, *seeds])])
    table = tables.table5(read)
    cells = {(line[0], line[5]): line[-2:] for line in table.rows}
    assert cells["Flowers", "B5"] == ("mean per class", "98.50 (n = 1)")
    # A row without that metric says which it has.
    assert cells["Oxford-IIIT Pets", "B4"] == ("mean per class", "94.00 (n = 1) of top-1")
    assert cells["CIFAR-10", "B0"] == ("top-1", "50.00 ± 0.00 (n = 2)")
    assert cells["Flowers", "B7"][1] == "not run: configs/transfer.py:flowers,b7"
    assert "Mean accuracy per class of the averaged (EMA) weights on oxford_f" in table.caption
    assert read.skipped == (f"2 of 5 rows of {path} (not of transfer learning)",)
    drawn = figures.figure6(read)
    (ours,) = (r for r in drawn.rows if r["source"] == "ours" and "flowers" in r["data"])
    assert (ours["metric"], ours["top1_mean"]) == ("mean_per_class", 0.985)
    # Of param_counts.csv, B5's with 1000 classes, less the other classes.
    assert ours["multiply_adds"] == 10_266_384_752 - 2048 * (1000 - 102)
    assert (
        page.missing("table5", read) == [] and len(page.missing("table5", results.Results())) == 2
    )
    # The length of a run in steps is the step of its checkpoint.
    path.write_text(EVALUATIONS.replace("350.0", ""))
    (point,) = results.read([path]).transfer("here", paper.transfer()["Flowers"])
    assert "after 2,000 steps at batch 256" in results.describe([point])
    path.write_text(EVALUATIONS.replace("28549782", "many"))
    with pytest.raises(UserError, match="not a whole number"):
        results.read([path])


def test_figure_7_shows_networks_side_by_side_for_one_class_an_image(run, tmp_path):
    write(tmp_path / "none.csv", [])
    none = f"--results={tmp_path / 'none.csv'}"
    page = (run(none) / "index.html").read_text()
    assert "--sweep=table7" in page and "effnet-jax report --networks runs/table7/runs/*" in page
    plain, copy = GOLDEN / "checkpoint_v1", tmp_path / "copy.safetensors"
    weights.save(copy, weights.load(plain))
    Image.new("RGB", (60, 40), "red").save(image := tmp_path / "wide.png")
    flags = [none, "--method=layercam", "--layer=stage2"]
    out = run(*flags, "--networks", str(plain), str(copy))
    with open(out / "figure7.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows[::4]] == ["checkpoint_v1", "copy"]
    assert [row["image"] for row in rows[:4]] == ["1", "2", "3", "4"]
    assert [row["probability"] for row in rows[:4]] == [row["probability"] for row in rows[4:]]
    for number in range(4):  # Of a run's own images, whose classes are known.
        assert len({row["class"] for row in rows[number::4]}) == 1
    assert (out / "figure7.png").exists()
    assert maps.name_networks(["a/b", "c/b", "d.safetensors"]) == ["a/b", "c/b", "d"]
    out = run(*flags, "--networks", str(copy), "--images", *[str(image)] * 4)
    assert len((out / "figure7.csv").read_text().splitlines()) == 5
    for arguments, message in (
        (["--networks", str(copy)], "is not the workdir of a run with images"),
        (["--networks", str(plain), "--layer=stage9"], "this network has: stem"),
        (["--networks", str(plain), f"--images={tmp_path / 'no.png'}"], "no.png"),
        (["--networks", str(plain), f"--images={tmp_path / 'none.csv'}"], "none.csv.*not an image"),
        ([f"--images={image}"], "needs --networks"),
    ):
        with pytest.raises(UserError, match=message):
            run(none, *arguments)
