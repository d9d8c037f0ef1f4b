from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from models.image.decode import ImageError, Preprocess, open_rgb

FLICKR = Path(__file__).resolve().parents[3] / "../shared/data/flickr8k"


def drawn(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth picture: a gradient with a few coloured discs."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    rng = np.random.default_rng(seed)
    pixels = np.stack([x, y, 1 - x], 2) * 255
    for _ in range(6):
        cx, cy, r = rng.random(), rng.random() * height / width, 0.05 + rng.random() * 0.2
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        open_rgb(data, **options)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_every_common_format_opens_as_rgb(kind: str, mode: str) -> None:
    if (kind == "JPEG" and mode == "P") or (kind == "WEBP" and mode in ("P", "1")):
        mode = "L"
    image = open_rgb(encoded(drawn().convert(mode), kind))
    assert (image.mode, image.size) == ("RGB", (60, 40))


def test_cmyk_opens_as_rgb_of_the_same_colours() -> None:
    image = open_rgb(encoded(drawn().convert("CMYK"), quality=95))
    assert np.abs(np.asarray(image, int) - np.asarray(drawn(), int)).mean() < 6


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    opened = open_rgb(encoded(image, "PNG"))
    assert opened.getpixel((0, 0)) == (10, 20, 30)
    assert opened.getpixel((3, 3)) == (255, 255, 255)


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 0), 1)
    opened = open_rgb(encoded(image, "PNG", transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_sixteen_bits_are_scaled_to_eight() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)
    opened = open_rgb(encoded(Image.fromarray(values), "PNG"))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    red, blue = (Image.new("RGB", (5, 5), colour) for colour in ("red", "blue"))
    data = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert open_rgb(data).getpixel((2, 2)) == (255, 0, 0)


def test_the_exif_orientation_is_applied_at_full_and_at_reduced_scale() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    data = encoded(drawn(640, 320), exif=exif)
    assert open_rgb(data).size == (320, 640)
    assert open_rgb(data, min_size=(40, 40)).size == (40, 80)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_image() -> None:
    data = encoded(drawn(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    assert open_rgb(data).size == (60, 40)


def test_bytes_that_are_no_image_say_so() -> None:
    for data in (b"", b"<!DOCTYPE html><html></html>", b"\x00" * 100, b"%!PS-Adobe-3.0 EPSF-3.0"):
        assert reason(data) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_half_a_file_never_opens(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert reason(data[: len(data) // 2]) in ("truncated", "undecodable")
    if kind in ("JPEG", "PNG"):
        assert reason(data[: len(data) // 2]) == "truncated"


def test_a_broken_stream_is_undecodable() -> None:
    data = bytearray(encoded(drawn(), "PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 40] = b"\xff" * 40
    assert reason(bytes(data)) == "undecodable"


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    assert reason(encoded(drawn(100, 100)), max_pixels=9_999) == "too_many_pixels"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    assert reason(bomb) == "too_many_pixels"


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.data())
def test_damaged_bytes_open_or_raise_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]))
    damaged = bytearray(encoded(drawn(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        image = open_rgb(bytes(damaged), max_pixels=1_000_000)
    except ImageError as error:
        assert error.reason in ("not_an_image", "truncated", "undecodable", "too_many_pixels")
    else:
        assert image.mode == "RGB"


def stock(images: list[bytes], **options: Any) -> torch.Tensor:
    opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    pixels: torch.Tensor = BlipImageProcessorPil(**options)(opened, return_tensors="pt")[
        "pixel_values"
    ]
    return pixels


def test_pixels_equal_the_stock_processor() -> None:
    images = [encoded(drawn(w, h, w), "PNG") for w, h in ((60, 40), (500, 375), (384, 384))]
    ours = Preprocess()(images)
    assert ours.dtype == torch.float32 and ours.shape == (3, 3, 384, 384)
    torch.testing.assert_close(ours, stock(images), rtol=0, atol=1e-5)


def test_a_jpeg_decoded_at_reduced_scale_stays_close_to_the_stock_processor() -> None:
    images = [encoded(drawn(1600, 1200, seed), quality=92) for seed in range(3)]
    assert open_rgb(images[0], min_size=(448, 448)).size == (800, 600)
    difference = Preprocess(size=224)(images) - stock(images, size={"height": 224, "width": 224})
    assert 0 < difference.abs().mean() < 0.02  # the whole range is about 4
    with_room = Preprocess(size=384)(images)  # half of 1200 is under two pixels for each kept
    torch.testing.assert_close(with_room, stock(images), rtol=0, atol=1e-5)


@pytest.mark.skipif(not FLICKR.is_dir(), reason="the photographs of ../shared are not here")
def test_pixels_of_photographs_equal_the_stock_processor() -> None:
    images = [path.read_bytes() for path in sorted(FLICKR.rglob("*.jpg"))[:8]]
    torch.testing.assert_close(Preprocess()(images), stock(images), rtol=0, atol=1e-5)


def test_no_images_give_an_empty_batch() -> None:
    assert Preprocess(size=32)([]).shape == (0, 3, 32, 32)


def test_an_image_that_does_not_open_raises_in_a_batch() -> None:
    with pytest.raises(ImageError):
        Preprocess(size=32)([encoded(drawn()), b"junk"])


def test_what_is_saved_is_read_by_the_stock_processor_and_by_us(tmp_path: Path) -> None:
    ours = Preprocess(size=48, mean=(0.5, 0.4, 0.3), resample=Image.Resampling.BILINEAR)
    ours.save(tmp_path)
    assert Preprocess.from_pretrained(tmp_path) == ours
    theirs = BlipImageProcessorPil.from_pretrained(tmp_path)
    images = [encoded(drawn(), "PNG")]
    pixels = theirs([open_rgb(images[0])], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours(images), pixels, rtol=0, atol=1e-5)


def test_what_the_stock_processor_saves_is_read(tmp_path: Path) -> None:
    theirs = BlipImageProcessorPil(size={"height": 64, "width": 64}, image_std=[0.1, 0.2, 0.3])
    theirs.save_pretrained(tmp_path / "image")
    BlipProcessor(theirs, BertTokenizer()).save_pretrained(tmp_path / "both")
    for name in ("image", "both"):
        ours = Preprocess.from_pretrained(tmp_path / name)
        assert ours == Preprocess(size=64, std=(0.1, 0.2, 0.3))


def test_without_settings_the_size_is_the_models(tmp_path: Path) -> None:
    BlipConfig(vision_config={"image_size": 96}).save_pretrained(tmp_path)
    assert Preprocess.from_pretrained(tmp_path) == Preprocess(size=96)


@pytest.mark.parametrize("wrong", [{"size": {"shortest_edge": 224}}, {"do_resize": False}])
def test_another_models_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    settings = json.dumps({"size": 224, **wrong})
    (tmp_path / "preprocessor_config.json").write_text(settings)
    with pytest.raises(ValueError, match="not BLIP's"):
        Preprocess.from_pretrained(tmp_path)
