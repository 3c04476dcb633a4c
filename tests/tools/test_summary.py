"""The summary command, as a person or a script would call it."""

import json

import pytest
from conftest import read_golden

from effnet_jax.errors import UserError
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.report import paper
from effnet_jax.tools import summary


def run(capsys, *arguments: str) -> str:
    summary.main(summary.PARSER.parse_args(list(arguments)))
    return capsys.readouterr().out


def test_json_has_the_models_in_the_order_asked(capsys):
    rows = json.loads(run(capsys, "b7", "b0", "phi=1.5", "w=1.2,d=1.4,r=291", "--json"))
    keys = ["model", "width", "depth", "resolution", "parameters", "multiply_adds"]
    assert [list(row) for row in rows] == [keys] * 4
    assert [row["model"] for row in rows] == ["b7", "b0", "phi=1.5", "w=1.2,d=1.4,r=291"]
    golden = {row["model"]: row for row in read_golden("param_counts.csv")}
    for row in rows[:2]:
        assert row["parameters"] == int(golden[row["model"]]["trainable_params"])
    assert rows[2]["width"] == pytest.approx(1.1**1.5)
    assert rows[2]["depth"] == pytest.approx(1.2**1.5)
    assert (rows[3]["width"], rows[3]["depth"], rows[3]["resolution"]) == (1.2, 1.4, 291)


def test_layers_are_shown_with_their_shapes(capsys):
    text = run(capsys, "b0", "--layers")
    assert "5,288,548" in text
    line = next(line for line in text.splitlines() if "stage3/block2/depthwise" in line)
    assert "5 x 5" in line
    assert "28 x 28 x 240" in line


def test_a_family_s_word_prints_it_beside_what_is_published(capsys):
    text = run(capsys, "all")
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert list(lines) == list(VARIANTS)
    for row in read_golden("param_counts.csv"):
        name = row["model"].lower().removesuffix("/1000")
        if name in VARIANTS:
            assert f" {int(row['trainable_params']):,} " in lines[name]
            assert f" {int(row['multiply_adds_at_res(conv+se+fc)']):,} " in lines[name]
    assert "│ 407" not in lines["lite0"] and "│ 0.407 B" in lines["lite0"]
    assert "lite3, lite4: the resolution is the official builder's" in text
    text = run(capsys, "edgetpu", "--num_classes=1001")
    assert "5,439,673" in text and "5.44 M" not in text
    rows = json.loads(run(capsys, "lite", "v2", "--json"))
    names = [name for name in VARIANTS if name.startswith(("lite", "v2"))]
    assert [row["model"] for row in rows] == names


def test_every_printed_figure_is_what_is_counted_or_has_its_reason():
    golden = {
        row["model"].lower().removesuffix("/1000"): row for row in read_golden("param_counts.csv")
    }
    printed = paper.published()
    assert printed.keys() == VARIANTS.keys()
    explained = {
        name for line in paper.differences(VARIANTS) for name in line.partition(":")[0].split(", ")
    }

    def digits(text, count, unit):
        places = len(text.partition(".")[2])
        return not text or f"{count / unit:.{places}f}" == text

    differ = {
        name
        for name, row in printed.items()
        if not digits(row["params_M"], int(golden[name]["trainable_params"]), 1e6)
        or not digits(row["flops_B"], int(golden[name]["multiply_adds_at_res(conv+se+fc)"]), 1e9)
    }
    assert explained - {"edgetpu-s", "edgetpu-m", "edgetpu-l"} == differ


def test_an_unknown_model_is_an_error(capsys):
    for arguments, message in ((["b77"], "did you mean"), (["b0", "--num_classes=0"], "1 or more")):
        with pytest.raises(UserError, match=message):
            run(capsys, *arguments)
