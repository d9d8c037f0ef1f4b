from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from helpers import fakes
from PIL import Image

from models.image.data_url import data_url
from models.image.decode import ImageError, open_rgb


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def opened(url: str) -> tuple[str, Image.Image]:
    kind, _, content = url.removeprefix("data:").partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    image.load()
    return kind, image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_plain_image_goes_as_it_is(format: str) -> None:
    image = encoded(fakes.painting(1), format)
    kind, _, content = data_url(image, 200).partition(";base64,")
    assert kind == f"data:image/{format.lower()}"
    assert base64.b64decode(content) == image


def test_a_large_image_is_resized_with_its_aspect_ratio_kept() -> None:
    kind, image = opened(data_url(fakes.jpeg(1, (1000, 400)), 200))
    assert (kind, image.size) == ("image/jpeg", (200, 80))
    expected = open_rgb(fakes.jpeg(1, (1000, 400))).resize((200, 80), Image.Resampling.BICUBIC)
    difference = np.asarray(image, float) - np.asarray(expected, float)
    assert np.abs(difference).mean() < 8


def test_an_image_of_one_line_keeps_a_side_of_one_pixel() -> None:
    _, image = opened(data_url(encoded(Image.new("RGB", (900, 1), "red"), "PNG"), 100))
    assert image.size == (100, 1)


@pytest.mark.parametrize(
    "image",
    [
        encoded(fakes.painting(2), "BMP"),
        encoded(fakes.painting(2).convert("L"), "PNG"),
        encoded(fakes.painting(2).convert("RGBA"), "PNG"),
        encoded(fakes.painting(2), "GIF"),
        fakes.jpeg(2)[:-2],
        encoded(
            fakes.painting(2),
            "WEBP",
            save_all=True,
            append_images=[fakes.painting(3)],
        ),
    ],
    ids=["bmp", "grey", "transparent", "gif", "no end", "animated"],
)
def test_other_images_are_encoded_anew(image: bytes) -> None:
    kind, found = opened(data_url(image, 500))
    assert kind == "image/jpeg" and found.mode == "RGB"
    assert found.size == open_rgb(image).size


def test_an_image_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _, image = opened(data_url(encoded(fakes.painting(4), "JPEG", exif=exif), 500))
    assert image.size == (120, 160) and not image.getexif()


@pytest.mark.parametrize("image", [b"", b"junk", fakes.jpeg(1)[:500]])
def test_an_image_that_cannot_be_decoded_is_an_error(image: bytes) -> None:
    with pytest.raises(ImageError):
        data_url(image, 500)
