"""What download makes of an image, whole or broken."""

from __future__ import annotations

import functools
import hashlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from helpers.downloads import Web, encode, listed, only, photo, stage
from PIL import Image, ImageOps

from stages.download import DownloadStage
from stages.schema import POOL


def pixels(row: dict[str, Any]) -> npt.NDArray[np.int16]:
    with Image.open(io.BytesIO(row["image"])) as image:
        assert image.mode == "RGB"
        assert image.size == (row["width"], row["height"])
        return np.asarray(image).astype(np.int16)


def difference(row: dict[str, Any], expected: Image.Image) -> float:
    """The mean difference to an image, in grey levels."""
    size = (row["width"], row["height"])
    wanted = np.asarray(expected.convert("RGB").resize(size, Image.Resampling.BOX))
    return float(np.abs(pixels(row) - wanted.astype(np.int16)).mean())


def test_a_row_of_a_list_becomes_a_row_of_the_pool(web: Web) -> None:
    content = encode(photo())
    row = only(web, content)
    assert row["status"] == "success"
    assert (row["width"], row["height"]) == (512, 384)
    assert (row["original_width"], row["original_height"]) == (640, 480)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert difference(row, photo()) < 3
    assert [field.name for field in POOL] == ["uid", *DownloadStage.writes.names]
    assert web.agents == {"capfilt/0.1"}


def test_small_images_are_enlarged_on_request_only(web: Web) -> None:
    content = encode(photo(100, 50))
    assert only(web, content)["width"] == 100
    assert only(web, content, resize_only_if_bigger=False)["height"] == 384


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_dropped(web: Web, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(300, 200)
    row = only(web, encode(image, exif=exif, quality=95))
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(turned)
    assert (row["original_width"], row["original_height"]) == upright.size
    assert difference(row, upright) < 3
    with Image.open(io.BytesIO(row["image"])) as kept:
        assert not kept.getexif()


@functools.cache  # when the first test runs, since every process collects all tests
def modes() -> dict[str, tuple[bytes, Image.Image]]:
    """Encoded images of every mode, and what they show."""
    image, grey = photo(200, 150), photo(200, 150).convert("L")
    clear = image.convert("RGBA")
    clear.putalpha(0)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    white = Image.new("RGB", image.size, "white")
    palette = image.quantize(64)
    frames = [photo(200, 150, seed) for seed in (0, 1, 2)]
    return {
        "grey jpeg": (encode(grey), grey),
        "cmyk jpeg": (encode(image.convert("CMYK"), quality=95), image),
        "progressive jpeg": (encode(image, progressive=True), image),
        "png": (encode(image, "PNG"), image),
        "transparent png": (encode(clear, "PNG"), white),
        "palette png": (encode(palette, "PNG"), palette),
        "transparent palette": (encode(palette, "PNG", transparency=bytes(64)), white),
        "16-bit png": (encode(deep, "PNG"), grey),
        "grey alpha png": (encode(grey.convert("LA"), "PNG"), grey),
        "bilevel png": (encode(Image.new("1", (50, 40), 1), "PNG"), Image.new("L", (50, 40), 255)),
        "webp": (encode(image, "WEBP"), image),
        "gif": (encode(palette, "GIF"), palette),
        "animated gif": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), image),
        "animated webp": (
            encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
            image,
        ),
        "bmp": (encode(image, "BMP"), image),
        "tiff": (encode(image, "TIFF"), image),
    }


MODES = (
    "grey jpeg",
    "cmyk jpeg",
    "progressive jpeg",
    "png",
    "transparent png",
    "palette png",
    "transparent palette",
    "16-bit png",
    "grey alpha png",
    "bilevel png",
    "webp",
    "gif",
    "animated gif",
    "animated webp",
    "bmp",
    "tiff",
)


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_becomes_plain_rgb(web: Web, mode: str) -> None:
    assert tuple(modes()) == MODES
    content, shown = modes()[mode]
    row = only(web, content)
    assert row["error"] is None
    assert difference(row, shown) < 9


def test_a_large_jpeg_is_decoded_at_a_fraction_and_keeps_its_original_size(web: Web) -> None:
    row = only(web, encode(photo(3000, 2001)))
    assert (row["original_width"], row["original_height"]) == (3000, 2001)
    assert (row["width"], row["height"]) in ((575, 384), (576, 384))
    assert difference(row, photo(3000, 2001)) < 3


def bomb() -> bytes:
    return encode(Image.new("1", (30_000, 30_000)), "PNG")


HTML = b"<!doctype html>\n<html><title>Just a moment</title><svg/></html>"
SVG = b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'


@functools.cache
def broken() -> dict[str, tuple[bytes, str]]:
    jpeg, png, webp = (encode(photo(), kind) for kind in ("JPEG", "PNG", "WEBP"))
    small = encode(photo(80, 60))
    with_thumbnail = jpeg[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + jpeg[2:]
    assert small.endswith(b"\xff\xd9")
    return {
        "a third of a jpeg": (jpeg[: len(jpeg) // 3], "truncated"),
        "nearly all of a jpeg": (jpeg[:-400], "truncated"),
        "a third of a jpeg with a thumbnail": (
            with_thumbnail[: len(with_thumbnail) // 3],
            "truncated",
        ),
        "half of a png": (png[: len(png) // 2], "truncated"),
        "half of a webp": (webp[: len(webp) // 2], "undecodable"),
        "a page": (HTML, "not_an_image"),
        "zeros": (b"\0\0\0\0" + jpeg[4:], "not_an_image"),
        "a drawing": (SVG, "svg"),
        "a bomb": (bomb(), "too_many_pixels"),
        "too long for jpeg": (encode(Image.new("L", (70_000, 20)), "PNG"), "not_resized"),
    }


BROKEN = (
    "a third of a jpeg",
    "nearly all of a jpeg",
    "a third of a jpeg with a thumbnail",
    "half of a png",
    "half of a webp",
    "a page",
    "zeros",
    "a drawing",
    "a bomb",
    "too long for jpeg",
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_a_row_with_its_reason(web: Web, name: str) -> None:
    assert tuple(broken()) == BROKEN
    content, error = broken()[name]
    row = only(web, content, resize_mode="no")
    assert (row["status"], row["error"]) == ("failed_to_resize", error)
    assert row["image"] is None
    assert row["width"] is None
    assert row["sha256"] == hashlib.sha256(content).hexdigest()


def test_images_do_not_depend_on_threads_or_on_the_rows_around_them(web: Web) -> None:
    urls = []
    for index, (content, _) in enumerate(modes().values()):
        web.files[str(index)] = content
        urls.append(web.url(str(index)))
    urls.append(web.url("nowhere"))
    one, many = stage(threads=1), stage(threads=16)
    whole = one.annotate(listed(urls))
    assert many.annotate(listed(urls)) == whole
    reversed_order = many.annotate(listed(urls[::-1]))
    assert reversed_order.take(list(range(len(urls)))[::-1]) == whole
    halves = [many.annotate(listed(urls[:5])), many.annotate(listed(urls[5:]))]
    assert pa.concat_tables(halves) == whole
