"""Crop rules, interpolations and normalisation against the programs that define them."""

import io
import json
import math
import time

import jax
import numpy as np
import pytest
import skimage.data
from conftest import GOLDEN
from PIL import Image

from effnet_jax import config as default
from effnet_jax.data import crop, decode
from effnet_jax.data.preprocess import CROP_RULES, Preprocess, normalize
from effnet_jax.data.resizing import INTERPOLATIONS, resize
from effnet_jax.errors import UserError

CHELSEA = skimage.data.chelsea()  # 300 x 451.
PILLOW = {
    "bicubic_pillow": Image.Resampling.BICUBIC,
    "bilinear_pillow": Image.Resampling.BILINEAR,
}


def preprocess(**changes) -> Preprocess:
    return Preprocess(
        **{
            "resolution": 64,
            "crop_rule": "padding",
            "crop_padding": 32,
            "crop_fraction": 0.875,
            "interpolation": "bicubic",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            **changes,
        }
    )


def encode(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_what_is_flat_stays_flat_and_a_fourth_channel_is_left_out(interpolation):
    flat = np.full((9, 7, 4), 77, np.uint8)
    flat[..., 3] = np.arange(63).reshape(9, 7)
    for shape in ((24, 24), (3, 5), (9, 7)):
        resized = resize(flat, shape, interpolation)
        assert resized.shape == (*shape, 3) and resized.dtype == np.uint8
        assert (resized == 77).all()


def test_resizing_is_that_of_tensorflow():
    golden = np.load(GOLDEN / "resizing.npz")
    names = [name for name in golden.files if name != "image"]
    assert {name.split()[0] for name in names} == {"bicubic_tf1", "bilinear_tf1", "bilinear"}
    for name in names:
        interpolation, *shape = name.split()
        ours = resize(golden["image"], tuple(map(int, shape)), interpolation)
        # OpenCV also rounds its bilinear weights; the others round only the result.
        most = 0.999 if interpolation == "bilinear" else 0.5001
        assert np.abs(ours - golden[name].clip(0, 255)).max() <= most


def test_truncated_pixels_are_tensorflow_s():
    """tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8) of TensorFlow's floats."""
    golden = np.load(GOLDEN / "resizing.npz")
    for name in (name for name in golden.files if name != "image"):
        interpolation, *shape = name.split()
        ours = resize(golden["image"], tuple(map(int, shape)), interpolation, truncate=True)
        floats = golden[name].clip(0, 255)
        off = np.abs(floats - np.rint(floats)) > 2e-3  # Not nearly a whole number.
        np.testing.assert_array_equal(ours[off], floats.astype(np.uint8)[off])
        np.testing.assert_array_equal(ours[~off], np.rint(floats)[~off])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_truncation_is_half_a_level_darker_and_keeps_flat_images(interpolation):
    flat = np.full((9, 7, 4), 77, np.uint8)
    assert (resize(flat, (24, 24), interpolation, truncate=True) == 77).all()
    one, other = (
        resize(CHELSEA, (64, 96), interpolation, cut).astype(int) for cut in (False, True)
    )
    assert ((one - other >= 0) & (one - other <= 1)).mean() > 0.999
    # Truncation leaves whole numbers alone, and those of area are often whole.
    assert (one - other).mean() == pytest.approx(0.5 * (interpolation != "nearest"), abs=0.15)


def test_bicubic_is_neither_of_tensorflow_one_nor_pillow():
    """On a photograph they differ by grey levels, so they must not be confused."""
    made = {name: resize(CHELSEA, (64, 96), name).astype(int) for name in INTERPOLATIONS}
    for name in ("bicubic_tf1", "bicubic_pillow"):
        assert np.abs(made["bicubic"] - made[name]).mean() > 2


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize(
    ("size", "fraction", "shape"),
    [
        # (height, width) of the resized whole image, by hand: floor(size / fraction) for the
        # shorter side, and the longer one rounded down. The photograph has 300 x 451 pixels.
        (224, 0.875, (256, 384)),
        (300, 0.904, (331, 497)),
        (240, 240 / 256, (256, 384)),
        (380, 380 / 384, (384, 577)),
    ],
)
def test_resize_is_torchvision_s_and_timm_s_rule(interpolation, size, fraction, shape):
    """Resize(floor(size / fraction)), then CenterCrop(size), computed by Pillow."""
    ours = preprocess(
        resolution=size, crop_rule="resize", crop_fraction=fraction, interpolation=interpolation
    )
    height, width = shape
    whole = Image.fromarray(CHELSEA).resize((width, height), PILLOW[interpolation])
    # transforms.functional.center_crop rounds halves to even.
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    expected = np.asarray(whole.crop((left, top, left + size, top + size)))
    np.testing.assert_array_equal(ours.pixels(encode(CHELSEA, "PNG")), expected)
    turned = ours.pixels(np.ascontiguousarray(CHELSEA.transpose(1, 0, 2)))
    assert turned.shape == (size, size, 3)


def test_squash_is_timm_s_rule():
    """Resize((333, 333)), then CenterCrop(300), as in timm's create_transform with crop_pct 0.9."""
    ours = preprocess(
        resolution=300, crop_rule="squash", crop_fraction=0.9, interpolation="bicubic_pillow"
    )
    whole = Image.fromarray(CHELSEA).resize((333, 333), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((16, 16, 316, 316)))  # round(16.5) is 16.
    np.testing.assert_array_equal(ours.pixels(encode(CHELSEA, "PNG")), expected)


@pytest.mark.parametrize(
    ("size", "resized"),  # Those of torchvision's EfficientNet weights.
    [
        *((224, 256), (240, 256), (240, 255), (288, 288), (300, 320), (380, 384)),
        *((456, 456), (528, 528), (600, 600), (384, 384), (480, 480)),
    ],
)
def test_a_crop_fraction_is_exact_for_torchvision_s_sizes(size, resized):
    assert math.floor(size / (size / resized)) == resized


def test_a_jpeg_s_pixels_are_pillow_s():
    data = encode(CHELSEA, "JPEG")
    ours = preprocess(resolution=224, crop_rule="resize", interpolation="bicubic_pillow")
    with Image.open(io.BytesIO(data)) as image:
        expected = ours.pixels(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(ours.pixels(data), expected)


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        # side = int(fraction * 300), offsets (300 - side + 1) // 2 and (451 - side + 1) // 2.
        ({"crop_rule": "padding"}, (50, 126, 200, 200)),
        ({"crop_rule": "fraction"}, (19, 95, 262, 262)),
        # floor(64 / 0.875) = 73, and 64 / 73 * 300 = 263.01.
        ({"crop_rule": "resize"}, (19, 94, 263, 263)),
        # 64 / 73 of both sides: 263.01 and 395.4.
        ({"crop_rule": "squash"}, (19, 28, 263, 395)),
        ({"crop_rule": "whole"}, (0, 0, 300, 451)),
    ],
)
def test_the_part_that_is_kept(changes, box):
    assert preprocess(**changes).box(300, 451) == box
    if changes["crop_rule"] not in ("resize", "squash"):
        top, left, height, width = box
        part = CHELSEA[top : top + height, left : left + width]
        expected = resize(part, (64, 64), "bicubic")
        np.testing.assert_array_equal(preprocess(**changes).pixels(CHELSEA), expected)


def test_every_kind_of_input_gives_the_same(tmp_path):
    data = encode(CHELSEA, "PNG")
    path = tmp_path / "chelsea.png"
    path.write_bytes(data)
    ours = preprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    one = ours(path)
    assert one.shape == (1, 64, 64, 3) and one.dtype == np.float32
    expected = (ours.pixels(data) / 255 - np.array([0.5, 0.25, 0.0])) / np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(one[0], expected, atol=1e-6)
    many = ours([str(path), data, Image.open(path), CHELSEA])
    assert many.shape == (4, 64, 64, 3)
    for image in many:
        np.testing.assert_array_equal(image, one[0])
    with pytest.raises(ValueError, match="an array must be uint8"):
        ours(CHELSEA / 255)
    with pytest.raises(ValueError, match="not an image"):
        ours(b"text")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((image for image in [CHELSEA]), "image 0: generator is not a type of image; give a path"),
        (None, "NoneType is not a type of image"),
        ([CHELSEA, None], "image 1: NoneType is not a type"),
        ([[CHELSEA]], "image 0: list is not a type of image"),
        ({"image": CHELSEA}, "dict is not a type of image"),
        ([], "an empty list"),
        ((), "an empty list"),
        (CHELSEA[:0], r"and not empty; got uint8 \(0, 451, 3\)"),
        (Image.new("RGB", (0, 4)), r"a Pillow image must not be empty; got the size \(0, 4\)"),
        (CHELSEA[None], r"\[h, w, 3\].* got uint8 \(1, 300, 451, 3\)"),
        (CHELSEA[..., 0], r"got uint8 \(300, 451\)"),
        (jax.numpy.zeros((4, 5, 3)), r"uint8 \[h, w, 3\].* got float32"),
        ("https://example.org/cat.jpg", "https://example.org/cat.jpg: a URL is not fetched"),
        ("data:image/png;base64," + "A" * 500, "^.{80}: a URL is not fetched"),
        ([CHELSEA, b"text"], "image 1: it is not an image"),
        (b"", "image 0: it is empty"),
    ],
)
def test_what_is_no_image_is_named_in_one_sentence(given, message):
    with pytest.raises(UserError, match=message):
        preprocess()(given)


def test_arrays_of_jax_and_views_of_bytes_are_taken():
    ours, data = preprocess(), encode(CHELSEA, "PNG")
    for given in (jax.numpy.asarray(CHELSEA), bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(ours(given), ours(CHELSEA))


def test_normalisation_is_the_same_on_the_device():
    import jax.numpy as jnp

    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    ours = normalize(pixels, mean, std)
    np.testing.assert_allclose(ours, (pixels.astype(float) - 127) / 128, atol=1e-6)
    there = normalize(jnp.asarray(pixels), mean, std)
    assert there.dtype == jnp.float32
    np.testing.assert_allclose(there, ours, atol=1e-6)


def test_it_survives_json_and_comes_from_a_config():
    ours = Preprocess.from_config(default.get_config("lite0").preprocess, 224)
    assert (ours.resolution, ours.mean) == (224, (127 / 255,) * 3)
    assert Preprocess(**json.loads(json.dumps(ours.to_dict()))) == ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_rule": "pad"}, "did you mean: padding"),
        ({"interpolation": "bicubic_pilow"}, "did you mean: bicubic_pillow"),
        ({"crop_fraction": 0.0}, "crop_fraction above 0"),
        ({"crop_padding": -1}, "crop_padding of 0 or more"),
        ({"resolution": 0}, "resolution of 1 or more"),
        ({"resolution": "224"}, "resolution must be a whole number of pixels; got '224'"),
        ({"resolution": 224.5}, "resolution must be a whole number"),
        ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": [123.7, 116.3, 103.5]}, "mean must be that of pixels in 0 to 1, not 0 to 255"),
        ({"mean": [float("nan")] * 3}, "mean must be that of pixels in 0 to 1"),
        ({"std": [float("nan")] * 3}, "std must be that of pixels in 0 to 1"),
        ({"std": [58.4, 57.1, 57.4]}, "std must be that of pixels in 0 to 1, not 0 to 255"),
        ({"std": [0.5, 0.5, 0.0]}, "above 0"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        preprocess(**changes)


def test_orientation_in_exif_is_ignored_as_in_the_reference():
    tags = Image.Exif()
    tags[0x0112] = 6  # A quarter turn.
    buffer = io.BytesIO()
    Image.fromarray(CHELSEA).save(buffer, "JPEG", exif=tags)
    assert decode.decode_image(buffer.getvalue()).shape == (300, 451, 3)


def test_a_photograph_is_the_same_by_path_by_bytes_and_by_pillow(tmp_path):
    """In all three cases the image is made upright by its EXIF orientation."""
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[274] = 6
    Image.fromarray(CHELSEA).save(path, exif=exif)
    upright = np.ascontiguousarray(CHELSEA.transpose(1, 0, 2)[:, ::-1])
    wanted = preprocess()(upright)
    for image in (path, path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(preprocess()(image), wanted)
    grey = Image.fromarray(np.full((8, 8), 51400, np.uint16))
    assert (np.rint(preprocess()(grey) * 255) == 200).all()
    with pytest.raises(UserError, match="image 0: its grey levels are floats of unknown range"):
        preprocess()(Image.fromarray(np.ones((8, 8), np.float32)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_images_of_any_proportion_take_little_in_every_crop_rule(interpolation):
    """One rule used to take 12 s, and others all of the memory."""
    ramp = np.abs(np.arange(30_001) - 15_000) / 15_000 * 255
    image = np.repeat(np.repeat(ramp.astype(np.uint8)[None, :, None], 3, 0), 3, 2)
    for rule in CROP_RULES:
        ours = preprocess(resolution=224, crop_rule=rule, interpolation=interpolation)
        for turned in (image, np.ascontiguousarray(image.transpose(1, 0, 2))):
            start = time.process_time()
            pixels = ours.pixels(turned)
            assert time.process_time() - start < 0.5  # Most take 5 ms.
            assert pixels.shape == (224, 224, 3)
            brightest = {"whole": (250, 256), "squash": (200, 256)}.get(rule, (0, 2))
            assert pixels.max() in range(*brightest)  # The ends are bright and the middle is dark.
    assert resize(image, (9, 40), interpolation).min() <= 8


def test_a_long_image_keeps_its_middle():
    for side in (100, 101, 47, 48):
        image = np.arange(side, dtype=np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2)
        kept = crop.middle(image)[0, :, 0]
        assert len(kept) == (side if side < 49 else 48 - side % 2)
        assert kept[0] + kept[-1] == side - 1
