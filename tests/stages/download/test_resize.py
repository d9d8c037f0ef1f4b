from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.fakes import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.download.resize import RESIZE_REASONS, Resize

PHOTOS = [
    SHARED / "data" / folder
    for folder in ("coco/images", "datajuicer_images", "imagededup_fixtures/base_images")
]


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with some grain."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = random.normal(0, 4, (height, width, 1))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def pixels(encoded: bytes | None) -> npt.NDArray[np.int16]:
    assert encoded is not None
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def theirs(content: bytes, size: int, mode: str, **options: Any) -> npt.NDArray[np.int16]:
    from img2dataset.resizer import Resizer  # importing takes seconds, in every process that tests

    encoded, *_ = Resizer(size, mode, **options)(io.BytesIO(content))
    return pixels(encoded)


@pytest.mark.skipif(not PHOTOS[0].is_dir(), reason="the photographs of ../shared are not here")
def test_photographs_become_those_of_img2dataset() -> None:
    resize, means = Resize(size=384), []
    for path in sorted(path for folder in PHOTOS for path in folder.glob("*.jpg"))[::3]:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.getexif().get(0x0112, 1) != 1 or image.mode != "RGB":
                continue
        ours, other = (
            pixels(resize(content).image),
            theirs(content, 384, "keep_ratio", resize_only_if_bigger=True),
        )
        assert ours.shape == other.shape
        means.append(float(np.abs(ours - other).mean()))
    assert len(means) > 20
    assert np.mean(means) < 2
    assert max(means) < 4


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from([1, 33, 100]),
    st.sampled_from(["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]),
    st.booleans(),
)
def test_sizes_are_those_of_img2dataset(
    width: int, height: int, size: int, mode: Any, only_if_bigger: bool
) -> None:
    content = encode(Image.new("RGB", (width, height), "red"))
    resized = Resize(size=size, mode=mode, only_if_bigger=only_if_bigger)(content)
    from img2dataset.resizer import Resizer

    one = Resizer(size, mode, only_if_bigger)
    encoded, their_width, their_height, *_ = one(io.BytesIO(content))
    if encoded is None:  # enlarged to a side too long for JPEG
        assert resized.error == "not_resized"
    else:
        assert (resized.width, resized.height) == (their_width, their_height)
        assert (resized.original_width, resized.original_height) == (width, height)


@pytest.mark.parametrize(
    "mode", ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
)
@pytest.mark.parametrize(
    ("kind", "quality", "most"), [("jpg", 90, 1.5), ("png", 6, 1.5), ("webp", 90, 2.5)]
)
def test_every_mode_and_encoding_is_that_of_img2dataset(
    mode: Any, kind: Any, quality: int, most: float
) -> None:
    content = encode(photo(640, 480), quality=90)
    ours = Resize(size=384, mode=mode, encode_format=kind, encode_quality=quality)(content)
    options = {"resize_only_if_bigger": True, "encode_format": kind, "encode_quality": quality}
    other = theirs(content, 384, mode, **options)
    assert np.abs(pixels(ours.image) - other).mean() < most


@pytest.mark.parametrize("width", [767, 768, 1535, 1536, 3072, 3100])
def test_a_jpeg_decoded_at_a_fraction_of_its_size_keeps_its_place(width: int) -> None:
    image = photo(width, 1000)
    resized = Resize(size=96)(encode(image, quality=95))
    size = (resized.width or 0, resized.height or 0)
    expected = np.asarray(image.resize(size, Image.Resampling.BOX)).astype(np.int16)
    assert np.abs(pixels(resized.image) - expected).mean() < 3


def cut(jpeg: bytes, lost: int) -> bytes:
    assert jpeg.endswith(b"\xff\xd9")
    return jpeg[: len(jpeg) - 2 - lost]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0}])
def test_a_jpeg_is_whole_if_all_its_scan_lines_are(mode: str, options: dict[str, int]) -> None:
    jpeg = encode(photo(200, 150).convert(mode), **options)
    whole = Resize(size=384)(jpeg)
    resize = Resize(size=384)
    assert resize(cut(jpeg, 0)) == whole
    assert resize(cut(jpeg, 0) + b"\0" * 100 + b"\xff\xd9").error is None
    for lost in (2, 3, 10, 1000):
        assert resize(cut(jpeg, lost)).error == "truncated"
        assert resize(cut(jpeg, lost) + b"\xff\xd9").error == "truncated"
        assert Resize(size=32)(cut(jpeg, lost)).error == "truncated"


def test_a_progressive_jpeg_without_its_end_may_lack_a_scan() -> None:
    jpeg = encode(photo(200, 150), progressive=True)
    resize = Resize(size=384)
    assert resize(jpeg).error is None
    for lost in (0, 2, 1000):
        assert resize(cut(jpeg, lost)).error == "truncated"


def test_stray_bytes_between_markers_lose_no_image() -> None:
    jpeg = encode(photo(200, 150))
    stray = cut(jpeg, 0) + b"\x12\x34\x56" + b"\xff\xd9"
    assert Resize(size=384)(stray).error is None


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    jpeg = encode(photo(64, 64), progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    many = jpeg[:last] + jpeg[last:-2] * 600 + b"\xff\xd9"
    assert Resize(size=384)(many).error == "undecodable"


def test_every_error_is_explained() -> None:
    resize = Resize(size=384, max_pixels=10_000)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    contents = [svg, b"<html>", encode(photo(101, 100)), cut(encode(photo(90, 90)), 9)]
    errors = [resize(content).error for content in contents]
    assert errors == ["svg", "not_an_image", "too_many_pixels", "truncated"]
    assert set(errors) < RESIZE_REASONS.keys()


def test_a_side_too_long_for_jpeg_is_a_reason_with_its_size() -> None:
    resized = Resize(size=384, mode="no")(encode(Image.new("L", (70_000, 20)), "PNG"))
    assert (resized.error, resized.image, resized.width) == ("not_resized", None, None)
    assert (resized.original_width, resized.original_height) == (70_000, 20)


def test_threads_change_no_byte(capfd: pytest.CaptureFixture[str]) -> None:
    contents = [encode(photo(500 + seed, 400, seed)) for seed in range(12)]
    resize = Resize(size=100)
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(resize, contents * 4)
        os.write(1, b"still heard")
        assert list(together) == [resize(content) for content in contents] * 4
    assert capfd.readouterr().out == "still heard"
