"""The curves of a run: training, and every evaluation by its name."""

import math

import pytest
from matplotlib.figure import Figure

from effnet_jax.report import curves, finish


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kw: drawn.append(self))
    return drawn


def test_every_evaluation_has_its_curve(tmp_path, drawn):
    rows = [
        {"step": 5, "epoch": 0.5, "train_loss": 2.0, "train_top1": 0.25, "data_wait": 0.1},
        {"step": 10, "epoch": 1.0, "val/ema/loss": 1.5, "val/ema/top1": 0.5, "val/ema/top5": 1.0},
        {"step": 20, "epoch": 2.0, "minival/raw/top1": 0.75, "val/ema/top1": 0.625},
    ]
    curves.draw_curves(rows, tmp_path / "curves.png")
    loss, accuracy, _ = (
        {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        for axes in drawn[0].axes
    )
    assert loss == {
        "training (augmented, smoothed labels)": [[0.5, 2.0]],
        "evaluation val/ema": [[1.0, 1.5]],
    }
    assert accuracy == {
        "training (augmented)": [[0.5, 25.0]],
        "evaluation val/ema": [[1.0, 50.0], [2.0, 62.5]],
        "evaluation minival/raw": [[2.0, 75.0]],
    }


@pytest.mark.parametrize("bad", [{}, {2: 1e5}, {1: 800.0, 2: math.nan}, {2: 1e5, 5: 70.0}])
def test_bad_evaluations_flatten_nothing_and_are_marked(tmp_path, drawn, bad):
    rows = []
    for step in range(1, 41):
        rows.append({"step": step, "epoch": step / 4, "train_loss": 0.5 + 2 / step})
        rows[-1]["learning_rate"] = 0.1
        if step % 4 == 0:
            loss = bad.get(step // 4, 0.4 + 2 / step)
            rows.append({"step": step, "epoch": step / 4, "val/raw/loss": loss})
    curves.draw_curves(rows, tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    low, high = axes.get_ylim()
    assert low < 0.45 and 0.9 < high < 3
    triangles = [line for line in axes.get_lines() if line.get_marker() in "^v"]
    beyond = [value for value in bad.values() if math.isfinite(value)]
    assert len(triangles) == len(beyond)
    note = axes.get_title(loc="right")
    assert note.endswith(f"beyond the axis, {min(beyond):.3g}" if len(beyond) == 1 else "")
    assert bool(note) == bool(beyond)


def test_a_run_with_one_row_and_one_evaluation_shows_both(tmp_path, drawn):
    rows = [
        {"step": 9, "epoch": 3.0, "train_loss": 2.0, "train_top1": 0.25, "learning_rate": 0.1},
        {"step": 9, "epoch": 3.0, "val/ema/loss": 1.5, "val/ema/top1": 0.5},
    ]
    curves.draw_curves(rows, tmp_path / "curves.png")
    assert all(line.get_marker() == "o" for axes in drawn[0].axes for line in axes.get_lines())
    assert [axes.get_xlim() for axes in drawn[0].axes] == [(0, 3.06)] * 3
    curves.draw_curves([], tmp_path / "curves.png")
    assert drawn[1].axes[0].get_xlim() == (0, 1)


def test_raw_and_averaged_are_both_seen_where_they_are_alike(tmp_path, drawn):
    row = {"step": 4, "epoch": 1.0, "learning_rate": 0.2, "train_loss": 1.0}
    row |= {f"val/{weights}/{m}": 0.5 for weights in ("raw", "ema") for m in ("loss", "top1")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([str(row).replace("'", '"')]) + "\n")
    (tmp_path / "run" / "classes.json").write_text("[]")
    finish.show(tmp_path / "run", 4, {f"val/ema/{k}": 0.5 for k in ("top1", "top5", "count")})
    loss, accuracy, rate = drawn[0].axes
    for axes in (loss, accuracy):
        ema, raw = (line for line in axes.get_lines() if "val/" in line.get_label())
        assert (ema.get_label(), raw.get_label()) == ("evaluation val/ema", "evaluation val/raw")
        # The second is above the first, thinner, and not filled.
        assert raw.get_linewidth() < ema.get_linewidth()
        assert raw.get_markersize() < ema.get_markersize()
        assert raw.get_markerfacecolor() == "white" and raw.get_color() != ema.get_color()
    assert rate.get_ylabel() == "learning rate"
    assert rate.get_lines()[0].get_xydata().tolist() == [[1.0, 0.2]]
    assert drawn[0].get_suptitle() == "run at step 4, val/ema 50.00%"
