"""Decoding against pixels that are known."""

import io

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.decode import decode_image

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
