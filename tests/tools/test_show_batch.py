"""Pages of pictures: each row one record, and files where they should be."""

import matplotlib.image
import numpy as np
import pytest

from effnet_jax.data import sources
from effnet_jax.errors import UserError
from effnet_jax.report import pictures
from effnet_jax.tools import show_batch


def test_rows_are_records_and_columns_are_epochs(tiny):
    source = pictures.Few(sources.open_source(tiny.data, "train"), 4)
    tiny.preprocess.crop_area = (1.0, 1.0)
    tiny.preprocess.crop_aspect = (1.0, 1.0)  # With the whole image and no mirror, epochs agree.
    epochs = pictures.versions(source, tiny, 3)
    assert [epoch.shape for epoch in epochs] == [(4, 16, 16, 3)] * 3
    for epoch in epochs:
        np.testing.assert_array_equal(epoch, epochs[0])
    assert len({image.tobytes() for image in epochs[0]}) == 4
    originals = [np.zeros((8, 12, 3), np.uint8)] * 4
    figure = pictures.draw(originals, epochs, source.classes, "digits: no policy")
    assert len(figure.axes) == 4 * (1 + 3)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["original", "epoch 1", "epoch 2"]
    shown = figure.axes[2 * 4 + 1].images[0].get_array()
    np.testing.assert_array_equal(shown, epochs[0][2])


def test_titles_say_what_the_host_does(tiny):
    assert pictures.title("digits", tiny) == "digits: no policy"
    tiny.augment.policy, tiny.augment.randaugment_magnitude = "randaugment", 17.0
    tiny.augment.erase_probability = 0.25
    expected = "b5: randaugment, 2 layers of magnitude 17; erasing 25%"
    assert pictures.title("b5", tiny) == expected


def test_the_command_writes_a_page(tmp_path, capsys):
    flags = ["--num_images=2", "--epochs=1", f"--out={tmp_path}"]
    show_batch.main(show_batch.PARSER.parse_args(flags))
    (file,) = tmp_path.iterdir()
    assert file.name == "digits.png"
    assert str(file) in capsys.readouterr().out
    assert matplotlib.image.imread(file).shape[-1] == 4
    with pytest.raises(UserError, match=r"--num_images.*1 or more"):
        show_batch.PARSER.parse_args([*flags, "--num_images=0"])
