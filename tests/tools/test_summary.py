"""The summary command, as a person or a script would call it."""

import json
import sys

import pytest
from conftest import read_golden

from effnet_jax.errors import UserError
from effnet_jax.tools import summary


def run(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["summary", *arguments])
    summary.main()
    return capsys.readouterr().out


def test_json_has_the_models_in_the_order_asked(monkeypatch, capsys):
    rows = json.loads(
        run(monkeypatch, capsys, "b7", "b0", "phi=1.5", "w=1.2,d=1.4,r=291", "--json")
    )
    keys = ["model", "width", "depth", "resolution", "parameters", "multiply_adds"]
    assert [list(row) for row in rows] == [keys] * 4
    assert [row["model"] for row in rows] == ["b7", "b0", "phi=1.5", "w=1.2,d=1.4,r=291"]
    golden = {row["model"]: row for row in read_golden("param_counts.csv")}
    for row in rows[:2]:
        assert row["parameters"] == int(golden[row["model"]]["trainable_params"])
    assert rows[2]["width"] == pytest.approx(1.1**1.5)
    assert rows[2]["depth"] == pytest.approx(1.2**1.5)
    assert (rows[3]["width"], rows[3]["depth"], rows[3]["resolution"]) == (1.2, 1.4, 291)


def test_layers_are_shown_with_their_shapes(monkeypatch, capsys):
    text = run(monkeypatch, capsys, "b0", "--layers")
    assert "5,288,548" in text
    line = next(line for line in text.splitlines() if "stage3/block2/depthwise" in line)
    assert "5 x 5" in line
    assert "28 x 28 x 240" in line


def test_an_unknown_model_is_an_error(monkeypatch, capsys):
    with pytest.raises(UserError, match="did you mean"):
        run(monkeypatch, capsys, "b77")
