"""Decoding against known pixels."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from effnet_jax.data import turbojpeg
from effnet_jax.data.crop import crop, random_box
from effnet_jax.data.decode import decode_box, decode_image, to_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_is_exact():
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(PIXELS), "PNG")), PIXELS)


def test_jpeg_is_what_pillow_reads():
    smooth = Image.fromarray(PIXELS).resize((64, 48), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    assert np.abs(decode_image(data).astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG")]
)
def test_every_kind_becomes_rgb(mode, kind):
    image = decode_image(encode(Image.fromarray(PIXELS).convert(mode), kind))
    assert image.shape == (13, 17, 3)
    assert image.dtype == np.uint8
    if mode == "L":
        assert (image == image[..., :1]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_images_are_refused(kind):
    data = encode(Image.fromarray(PIXELS).resize((200, 200)), kind)
    for damaged in (data[: len(data) // 2], b"", b"no image at all"):
        with pytest.raises(ValueError, match=r"\w"):
            decode_image(damaged)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_by_its_range(kind):
    grey = np.linspace(0, 65535, 13 * 17).astype(np.uint16).reshape(13, 17)
    expected = np.repeat(np.rint(grey / 257)[..., None], 3, 2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey), kind)), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(grey)), expected)
    white_is_zero = encode(Image.fromarray(grey), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode_image(white_is_zero), 255 - expected)
    black = np.zeros_like(grey)
    assert not decode_image(encode(Image.fromarray(black), kind)).any()


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.uint16, "16-bit grey levels are at most 4095"),
        (np.int32, "its grey levels are integers of unknown range"),
        (np.float32, "its grey levels are floats of unknown range"),
    ],
)
def test_grey_of_unknown_range_is_refused_by_name(dtype, message):
    grey = Image.fromarray(np.arange(4096, dtype=dtype).reshape(64, 64))
    with pytest.raises(ValueError, match=message):
        decode_image(encode(grey, "TIFF"))
    with pytest.raises(ValueError, match=message):
        to_rgb(grey)


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_colours_of_12_bits_in_16_are_refused(kind):
    """They used to come out nearly black."""
    high = PIXELS.astype(np.uint16) * 257
    data = cv2.imencode(kind, high[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), PIXELS)
    with pytest.raises(ValueError, match="16-bit colour levels are at most 4095 of 65535, as if"):
        decode_image(cv2.imencode(kind, high >> 4)[1].tobytes())
    assert not decode_image(cv2.imencode(kind, high * 0)[1].tobytes()).any()
    dark = encode(Image.fromarray(PIXELS // 32), "BMP")  # An 8-bit image may be dark.
    np.testing.assert_array_equal(decode_image(dark), PIXELS // 32)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG", "GIF"])
def test_several_images_in_a_file_are_refused(kind):
    """The first page or frame used to be taken without a word."""
    first, second = Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)
    data = encode(first, kind, save_all=True, append_images=[second])
    with pytest.raises(ValueError, match="it has 2 frames or pages; save one of them as an image"):
        decode_image(data)
    # A photograph's preview, or the other half of a stereo pair, does not count.
    second.encoderinfo = {"tiffinfo": {254: 1}}
    data = encode(first, "TIFF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(data), PIXELS)
    stereo = encode(first.convert("CMYK"), "MPO", save_all=True, append_images=[second])
    assert decode_image(stereo).shape == PIXELS.shape


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image, a format that phones save; convert"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.4", r"it is not an image, or badly damaged; it starts with b'%PDF-1\.4'"),
    ],
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        decode_image(data)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparent_colours_has_its_colours():
    image = Image.fromarray(PIXELS).quantize(16)
    data = encode(image, "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(decode_image(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_or_ignored(kind, orientation):
    """Compares with Pillow; a box is one of the upright image."""
    image, exif = photograph(61, 93), Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(image, kind, exif=exif, **options)
    upright = decode_image(data, "apply")
    stored = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.abs(upright - np.asarray(stored, int)).max() <= 2 * (kind == "JPEG")
    assert kind == "TIFF" or decode_image(data).shape == (61, 93, 3)
    box = (7, 11, 30, 40)
    asked = []
    part = decode_box(data, lambda *size: asked.append(size) or box, "apply")
    np.testing.assert_array_equal(part[..., :3], crop(upright, box))
    assert asked == [upright.shape[:2]]


def test_damaged_exif_turns_nothing():
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0MM no directory")
    np.testing.assert_array_equal(decode_image(data, "apply"), decode_image(data))


def photograph(height: int, width: int) -> Image.Image:
    """scikit-learn's photograph of a flower, resized."""
    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}


def encode_photograph(kind: str, height: int = 241, width: int = 317) -> bytes:
    options = dict(JPEGS[kind])
    image = photograph(height, width).convert(options.pop("mode", "RGB"))
    return encode(image, "JPEG", quality=85, **options)


@pytest.mark.parametrize("way", ["turbojpeg", "whole"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_box_is_the_crop_of_the_whole(kind, way, monkeypatch):
    data = encode_photograph(kind)
    whole = decode_image(data)
    if way != "turbojpeg":
        monkeypatch.setattr(turbojpeg, "library", lambda: None)
    assert whole.shape == (241, 317, 3)
    rng = np.random.default_rng(0)
    random = [random_box(241, 317, (0.01, 1), (3 / 4, 4 / 3), rng, 0.0) for _ in range(40)]
    edges = [(left, left, 40, 50) for left in range(40)]  # Blocks are 8, 16 or 32 pixels wide.
    for box in [*random, *edges, (0, 0, 241, 317), (0, 0, 1, 1), (240, 316, 1, 1), (17, 33, 8, 16)]:
        asked = []

        def choose(height, width, asked=asked, box=box):
            asked.append((height, width))
            return box

        np.testing.assert_array_equal(decode_box(data, choose)[..., :3], crop(whole, box))
        assert asked == [(241, 317)]  # Called once, because it draws random numbers.


def test_boxes_are_decoded_alone_by_libturbojpeg():
    """Without the library, which the development requirements have, the test above is void."""
    data = encode(photograph(200, 300), "JPEG", quality=85)
    assert turbojpeg.decode_box(data, lambda height, width: (10, 20, 30, 40)).shape == (30, 40, 4)


def test_a_truncated_file_is_found_whatever_the_box():
    data = encode(photograph(200, 300), "JPEG", quality=85)
    for kept in (0.5, 0.9, 0.999):
        with pytest.raises(ValueError, match=r"\w"):
            decode_box(data[: int(len(data) * kept)], lambda height, width: (0, 0, 8, 8))
