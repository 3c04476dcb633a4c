"""The curves of a run: training, and every evaluation by its name."""

from matplotlib.figure import Figure

from effnet_jax.report import curves


def test_every_evaluation_has_its_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kw: drawn.append(self))
    rows = [
        {"step": 5, "epoch": 0.5, "train_loss": 2.0, "train_top1": 0.25, "data_wait": 0.1},
        {"step": 10, "epoch": 1.0, "val/ema/loss": 1.5, "val/ema/top1": 0.5, "val/ema/top5": 1.0},
        {"step": 20, "epoch": 2.0, "minival/raw/top1": 0.75, "val/ema/top1": 0.625},
    ]
    curves.draw_curves(rows, tmp_path / "curves.png")
    loss, accuracy = (
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
