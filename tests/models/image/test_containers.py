from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from helpers.fakes import painting
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.image import containers
from models.image.containers import CostlyError, bare, orientation
from models.image.decode import ImageError, decode

MEGABYTES = 4_000_000


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes, flaw: int = 0) -> bytes:
    checksum = zlib.crc32(name + body) ^ flaw
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def tags(entries: list[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """A directory of tags: tag, type, number of values, value or offset."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, number, value in entries:
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), value, *[0][: kind == 3])
        body += struct.pack(f"{order}HHI", tag, kind, number) + packed
    return head + body + bytes(4)


def exif(value: int, order: str = "<") -> bytes:
    return b"Exif\0\0" + tags([(0x0112, 3, 1, value)], order)


PHOTO = painting(3, (64, 48))
JPEG, PNG, GIF, TIFF = (encoded(PHOTO, kind) for kind in ("JPEG", "PNG", "GIF", "TIFF"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65535])
def test_an_orientation_outside_its_values_turns_nothing(kind: str, value: int, order: str) -> None:
    if kind == "TIFF":
        content = encoded(PHOTO, kind, tiffinfo={0x0112: value})
    else:
        content = encoded(PHOTO, kind, exif=exif(value, order))
    found = decode(content)
    flipped = PHOTO if value not in range(2, 9) else PHOTO.transpose(TURNS[value])
    assert (found.width, found.height) == flipped.size
    assert found.pixels.shape == (found.height, found.width, 3)
    difference = found.pixels.astype(int) - np.asarray(flipped)
    assert np.abs(difference).mean() < 6


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_an_orientation_is_read_from_xmp_where_exif_tells_none() -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    segment = containers.XMP + packet
    jpeg = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
    png = PNG[:33] + chunk(b"iTXt", containers.XMP_TEXT + packet) + PNG[33:]
    webp = encoded(PHOTO, "WEBP", xmp=packet)
    for content in (jpeg, png, webp):
        assert (decode(content).width, decode(content).height) == (48, 64)
    assert orientation(exif(3), packet) == 3 and orientation(b"", packet) == 6
    assert orientation(b"", packet.replace(b"6", b"9")) == 1


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_have_an_orientation(content: bytes, is_tiff: bool) -> None:
    assert 1 <= orientation((b"II*\0" if is_tiff else b"") + content, content) <= 8


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([JPEG, PNG, GIF, TIFF]), st.data())
def test_damaged_headers_are_cut_down_or_refused(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 200) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    with contextlib.suppress(CostlyError, EOFError):
        assert len(bare(cut).data) <= len(cut) + 400
    try:
        assert decode(cut, 100_000).pixels.ndim == 3
    except ImageError as error:
        assert error.reason


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["text", "profile", "zipped", "flawed", "unknown"]), max_size=6))
def test_what_surrounds_the_pixels_of_a_png_loses_none(kinds: list[str]) -> None:
    packed = zlib.compress(bytes(2**21))
    parts = {
        "text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed),
        "zipped": chunk(b"zTXt", b"Comment\0\0" + packed),
        "profile": chunk(b"iCCP", b"icc\0\0" + packed),
        "flawed": chunk(b"gAMA", b"\0\0\xb1\x8f", flaw=1),
        "unknown": chunk(b"prVt", bytes(50), flaw=7),
    }
    content = PNG[:33] + b"".join(parts[kind] for kind in kinds) + PNG[33:]
    assert np.array_equal(decode(content).pixels, np.asarray(PHOTO))
    assert len(bare(content).data) <= len(PNG)


def test_transparency_with_a_wrong_checksum_is_none() -> None:
    grey = encoded(Image.new("L", (4, 4), 7), "PNG")
    for flaw, value in ((0, 255), (1, 7)):
        content = grey[:33] + chunk(b"tRNS", b"\0\7", flaw) + grey[33:]
        assert decode(content).pixels[0, 0].tolist() == [value] * 3


def test_a_header_with_a_wrong_checksum_is_refused() -> None:
    with pytest.raises(ImageError):
        decode(PNG[:29] + bytes([PNG[29] ^ 1]) + PNG[30:])


def small_gif(blocks: bytes) -> bytes:
    head = 13 + 3 * 256
    return GIF[:head] + blocks + GIF[head:]


COSTLY = {
    "fill of a JPEG": JPEG[:2] + b"\xff" * MEGABYTES + JPEG[2:],
    "fill without a scan": JPEG[:2] + b"\xff" * MEGABYTES,
    "comments of a JPEG": JPEG[:2] + b"\xff\xfe\0\2" * (MEGABYTES // 4) + JPEG[2:],
    "tables of a JPEG": JPEG[:2] + b"\xff\xdb\0\2" * (MEGABYTES // 4) + JPEG[2:],
    "restarts of a JPEG": JPEG[:2] + b"\xff\xd0" * (MEGABYTES // 2) + JPEG[2:],
    "chunks of a PNG": PNG[:33] + chunk(b"tEXt", b"") * (MEGABYTES // 12) + PNG[33:],
    "data of a PNG": PNG[:33] + chunk(b"IDAT", b"") * (MEGABYTES // 12) + PNG[33:],
    "blocks of a GIF": small_gif(b"\x21\xfe" + b"\1a" * (MEGABYTES // 2) + b"\0"),
    "comments of a GIF": small_gif(b"\x21\xfe\1a\0" * (MEGABYTES // 5)),
    "padding of a GIF": small_gif(bytes(MEGABYTES)),
    "strips of a TIFF": tags([(273, 4, 500_000, 8)]) + bytes(MEGABYTES),
    "values of a TIFF": tags([(273 if i else 279, 7, MEGABYTES, 8) for i in (0, 1)])
    + bytes(MEGABYTES),
    "runs of a bitmap": b"BM" + bytes(28) + b"\1\0\0\0" + bytes(MEGABYTES),
    "boxes of a JPEG 2000": b"\0\0\0\x0cjP  " + b"\0\0\0\x08free" * (MEGABYTES // 8),
    "segments of a JPEG 2000": b"\xff\x4f\xff\x51\0\2" + b"\xff\x64\0\2" * (MEGABYTES // 4),
    "directories of an AVIF": b"\0\0\0\x20ftypavif" + b"II*\0" * 5000,
    "values in an AVIF": b"\0\0\0\x20ftypavif" + tags([(1, 7, 2**30, 8)] * 9),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_header_that_costs_more_than_pixels_is_refused(name: str) -> None:
    with pytest.raises(CostlyError):
        bare(COSTLY[name])
    with pytest.raises(ImageError, match="undecodable"):
        decode(COSTLY[name])


@pytest.mark.parametrize(
    "content",
    [
        JPEG[:2] + b"\xff" * 1000 + JPEG[2:],
        JPEG[:2] + b"\xff\xfe\0\2" * 1000 + JPEG[2:],
        JPEG[:2] + (b"\xff\xed\xff\xff" + bytes(65533)) * 300 + JPEG[2:],
        PNG[:33] + chunk(b"tEXt", b"k\0v") * 1000 + PNG[33:],
        small_gif(b"\x21\xfe" + (b"\xff" + bytes(255)) * 1000 + b"\0"),
    ],
    ids=["fill", "comments", "large segments", "chunks", "blocks"],
)
def test_what_is_odd_but_cheap_is_read(content: bytes) -> None:
    found = decode(content)
    assert np.abs(found.pixels.astype(int) - np.asarray(PHOTO)).mean() < 12
    assert len(bare(content).data) < 20_000


def test_directories_of_a_tiff_that_follow_one_another_are_not_walked() -> None:
    pages = encoded(PHOTO, "TIFF", save_all=True, append_images=[painting(4, (64, 48))] * 50)
    with Image.open(io.BytesIO(bare(pages).data)) as image:
        assert getattr(image, "n_frames", 1) == 1
    assert np.array_equal(decode(pages).pixels, np.asarray(PHOTO))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_a_tiff_cut_down_has_the_pixels_of_the_whole(mode: str, compression: str) -> None:
    if compression == "jpeg" and mode in ("1", "P", "LA", "RGBA"):
        pytest.skip("JPEG has no such samples")
    content = encoded(PHOTO.convert(mode), "TIFF", compression=compression)
    with Image.open(io.BytesIO(content)) as image:
        white = Image.new("RGBA", image.size, "white")
        if image.has_transparency_data:
            expected = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        else:
            expected = image.convert("RGB")
    assert np.array_equal(decode(content).pixels, np.asarray(expected))


def test_a_big_tiff_is_read() -> None:
    content = encoded(PHOTO, "TIFF", big_tiff=True)
    assert content[2] == 43
    assert np.array_equal(decode(content).pixels, np.asarray(PHOTO))


def samples(values: np.ndarray[Any, Any]) -> bytes:
    return encoded(Image.fromarray(values), "TIFF")


def test_samples_of_a_range_that_nothing_tells_are_refused() -> None:
    ramp = np.linspace(0, 1, 64 * 48).reshape(48, 64)
    for values in (ramp.astype(np.float32), (ramp * 2**31).astype(np.int32)):
        with pytest.raises(ImageError, match="undecodable: samples of 32 bits"):
            decode(samples(values))
    for kind in ("TIFF", "PNG"):
        grey = encoded(Image.fromarray((ramp * 65535).astype(np.uint16)), kind)
        assert np.abs(decode(grey).pixels[:, :, 0] - ramp * 255).max() <= 1


def many_scans(number: int, is_progressive: bool) -> bytes:
    content = encoded(Image.new("RGB", (1600, 1600)), "JPEG", progressive=is_progressive)
    start = content.rindex(b"\xff\xda")
    scan = content[start:-2]
    if not is_progressive:  # a scan of one component, again and again
        length = int.from_bytes(scan[2:4], "big")
        scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + scan[2 + length :]
    return content[:start] + scan * number + b"\xff\xd9"


@pytest.mark.parametrize("is_progressive", [True, False])
def test_a_jpeg_of_endless_scans_is_refused_before_a_pass(is_progressive: bool) -> None:
    with pytest.raises(ImageError, match="more than 390 scans"):
        decode(many_scans(400, is_progressive))


def test_scans_of_a_jpeg_within_a_tiff_are_counted() -> None:
    content = encoded(Image.new("RGB", (64, 64)), "TIFF", compression="jpeg")
    with pytest.raises(ImageError, match="more than 500 scans"):
        decode(content + b"\xff\xda" * 600)
    assert decode(content).width == 64


def test_what_follows_a_jpeg_of_one_scan_is_no_scan() -> None:
    assert decode(JPEG + b"\xff\xda" * 5000).width == 64
