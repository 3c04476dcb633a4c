"""An evaluation in detail: tables by hand, and a page that stands alone."""

import base64
import csv
import html
import re

import cv2
import numpy as np
import pytest

from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError
from effnet_jax.metrics import Outcomes, no_outcomes
from effnet_jax.report import details

CLASSES = ("cat", "<b>$dog$</b>", "n01440764", "unused")
COUNTS = np.array([[3, 1, 2, 0], [0, 2, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]], np.int32)


class Squares(Source):
    """Record i is a grey square, 40 + i pixels wide, of the classes that `labels` gives."""

    def __init__(self, labels):
        super().__init__(CLASSES[:3], labels)

    def __getitem__(self, index):
        image = np.full((30, 40 + index, 3), 20 * index, np.uint8)
        return {"image": cv2.imencode(".png", image)[1].tobytes(), "label": self._records[index]}

    def describe(self, index):
        return f"square{index}.png"


def outcomes(*mistakes):
    """Of COUNTS, with mistakes (probability, record, label, predicted)."""
    found = Outcomes(COUNTS, *(each.copy() for each in no_outcomes(4)[1:]))
    for place, mistake in enumerate(mistakes):
        for array, value in zip(found[1:], mistake, strict=True):
            array[place] = value
    return found


def test_tables_and_a_page_of_mistakes_with_their_images(tmp_path):
    found = outcomes((0.9, 1, 2, 0), (0.75, 0, 0, 1), (0.5, 2, 0, 2))
    source = Squares([0, 2, 1])  # The last record has another class than when it was evaluated.
    details.write(tmp_path / "new", r"run <x> $\odd{$", CLASSES, found, source)
    with open(tmp_path / "new" / "per_class.csv", newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ["cat", "6", "3", "0.500000", "n01440764", "2"],
        ["<b>$dog$</b>", "2", "2", "1.000000", "", ""],
        ["n01440764", "4", "0", "0.000000", "cat", "4"],
        ["unused", "0", "0", "", "", ""],
    ]
    with open(tmp_path / "new" / "confusion.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == list(CLASSES) == [row[0] for row in rows]
    assert [[int(cell) for cell in row[1:]] for row in rows] == COUNTS.tolist()
    assert (tmp_path / "new" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "new" / "mistakes.html").read_text()
    assert "<b>$dog" not in page and not re.search(r"https?://|<script|<link|url\(", page)
    images = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)]
    shapes = [cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape for data in images]
    assert shapes == [(round(30 * 192 / 41), 192, 3), (round(30 * 192 / 40), 192, 3)]
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    assert "7 mistakes, of which this page shows the 3 with the highest" in text
    assert "true tench predicted cat , 90.0% square1.png" in text
    assert "no image. true cat predicted tench , 50.0% square2.png" in text
    assert "top-1 41.7%, mean per class 50.0%, 12 images" in text
    with pytest.raises(UserError, match=r"per_class\.csv already exists; choose another"):
        details.check(tmp_path / "new")
    details.check(tmp_path / "other")
    with pytest.raises(UserError, match="can't write to --details="):
        details.check(tmp_path / "new" / "per_class.csv" / "under")


def test_a_matrix_has_the_classes_that_occur_and_of_very_many_the_worst_are_named():
    axes = details.draw(CLASSES, COUNTS, "").axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["cat", r"<b>\$dog\$</b>", "n01440764"]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "2", "4"]
    counts = np.diag(np.arange(1, 102))
    counts[70, 3] = 142  # 71 of 213.
    many = [f"class {number}" for number in range(101)]
    for each in (counts, np.stack([counts.sum(1) - counts.diagonal(), counts.diagonal()], 1)):
        axes = details.draw(many, each, "").axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["class 70", "class 0"]
        assert len(axes.get_yticklabels()) == 50
        whole = "; most often taken for class 3 (142)" if each is counts else ""
        assert axes.texts[0].get_text() == f"71 of 213{whole}"
    assert details.by_class(many, each)[71] == ["class 70", 213, 71, "0.333333", "", ""]
