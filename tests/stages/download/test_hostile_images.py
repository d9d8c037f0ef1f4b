"""Images that are broken on purpose: each is an image of the promised size, or a reason."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.fakes import SHARED, jpeg
from PIL import Image, ImageCms

from models.image import decode as decoding
from models.image.decode import ImageError, Preprocess, decode
from stages.clean import CleanConfig, CleanStage
from stages.download import DownloadConfig, DownloadStage
from stages.download.resize import RESIZE_REASONS, Mode, Resize
from stages.image_prints import ImagePrints, opened
from stages.sources import shards

ROUNDS = int(os.environ.get("CAPFILT_FUZZ_IMAGES", "1500"))
"""Mutated images that are tried; each has its seed, so a failure can be had again."""

FIXTURES = SHARED / "data" / "imagededup_fixtures"
SIZE = 32
MOST = 400_000  # pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 48), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def corpus() -> tuple[bytes, ...]:
    """Small images of every format that is decoded, with everything that a file may carry."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = [picture(seed=seed) for seed in range(4)]
    rest: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    deep = Image.fromarray((np.arange(64 * 48, dtype=np.uint16) * 21).reshape(48, 64))
    return (
        encoded(picture(), "JPEG", exif=exif, icc_profile=profile),
        encoded(picture(), "JPEG", progressive=True, restart_marker_rows=2),
        encoded(picture("L"), "JPEG"),
        encoded(picture("CMYK"), "JPEG"),
        encoded(picture(), "PNG", exif=exif, icc_profile=profile),
        encoded(picture("RGBA"), "PNG"),
        encoded(picture("P"), "PNG", transparency=3),
        encoded(picture("1"), "PNG"),
        encoded(deep, "PNG"),
        encoded(frames[0], "PNG", **rest),
        encoded(picture(), "WEBP", exif=exif, icc_profile=profile),
        encoded(picture("RGBA"), "WEBP", lossless=True),
        encoded(frames[0], "WEBP", **rest),
        encoded(frames[0], "GIF", **rest),
        encoded(picture(), "TIFF", compression="tiff_lzw", exif=exif),
        encoded(picture(), "TIFF", compression="tiff_adobe_deflate"),
        encoded(picture(), "TIFF", compression="jpeg"),
        encoded(picture("CMYK"), "TIFF"),
        encoded(picture("1"), "TIFF", compression="group4"),
        encoded(deep, "TIFF"),
        encoded(picture(), "BMP"),
        encoded(picture("P"), "BMP"),
        encoded(picture(), "AVIF"),
        encoded(picture("RGBA"), "JPEG2000"),
    )


def mutated(seed: int, images: tuple[bytes, ...]) -> bytes:
    """One of some images, damaged as a seed says."""
    rng = random.Random(seed)
    content = bytearray(rng.choice(images))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(content) or 1)
        if rng.random() < 0.5:  # where headers lie
            at = min(at, rng.randrange(64))
        length = rng.choice((1, 2, 4, 64))
        match rng.randrange(8):
            case 0:
                del content[at:]
            case 1 | 2:
                content[at : at + 1] = rng.randbytes(1)
            case 3:
                content[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
            case 4:
                content[at : at + 4] = struct.pack(
                    rng.choice("<>") + "I", rng.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1))
                )
            case 5:  # of another image, perhaps of another format
                other = rng.choice(images)
                start = rng.randrange(len(other))
                content[at : at + length] = other[start : start + rng.choice((8, 200, 10**6))]
            case 6:
                content[:at] = rng.choice(images)[:at]
            case 7:
                content[at:at] = content[at : at + 16 * length] * rng.choice((1, 3, 50))
    return bytes(content)


def check(content: bytes, resize: Resize, preprocess: Preprocess) -> None:
    found = resize(content)
    if found.error is not None:
        assert found.error in RESIZE_REASONS
        assert found.image is None and found.width is None and found.height is None
    else:
        assert found.image is not None and found.width is not None and found.height is not None
        assert found.original_width is not None and found.original_height is not None
        assert found.original_width * found.original_height <= MOST
        with Image.open(io.BytesIO(found.image)) as image:
            image.load()
            assert image.size == (found.width, found.height) and image.mode == "RGB"
        short = min(found.original_width, found.original_height)
        assert min(found.width, found.height) == min(SIZE, short)
        assert ImagePrints.of([found.image]).contrast[0] >= 0
        assert preprocess.square(found.image).shape == (SIZE, SIZE, 3)
    # What no stage does, since download encodes anew: a pool may be another's.
    prints = ImagePrints.of([content])
    assert (prints.contrast[0] >= 0) == (opened(content) is not None)
    try:
        assert preprocess.square(content).dtype == np.uint8
    except ImageError as error:
        assert error.reason in RESIZE_REASONS


def test_mutated_images_are_images_of_the_promised_size_or_reasons() -> None:
    resize, preprocess = Resize(size=SIZE, max_pixels=MOST), Preprocess(size=SIZE)
    for seed in range(ROUNDS):
        try:
            check(mutated(seed, corpus()), resize, preprocess)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures of ../shared are not here")
def test_every_fixture_of_imagededup_is_an_image_or_a_reason_whole_and_damaged() -> None:
    paths = sorted(path for path in FIXTURES.rglob("*.*") if path.is_file())
    found = tuple(path.read_bytes() for path in paths)
    resize, preprocess = Resize(size=SIZE, max_pixels=MOST), Preprocess(size=SIZE)
    errors = {path.name: resize(image).error for path, image in zip(paths, found, strict=True)}
    assert {name: error for name, error in errors.items() if error} == {
        "Iggy.1024.ppm": "not_an_image",
        "baboon.pgm": "not_an_image",
        "marbles.pbm": "not_an_image",
        "ukbench09268_corrupt.jpg": "not_an_image",
    }
    for seed in range(ROUNDS // 5):
        check(mutated(seed, found), resize, preprocess)


def test_a_row_of_damaged_images_goes_through_the_stages(tmp_path: Path) -> None:
    for seed in range(120):
        (tmp_path / f"{seed:03d}.jpg").write_bytes(mutated(seed, corpus()))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "whole.jpg").write_bytes(jpeg(1))
    stage = DownloadStage(DownloadConfig(source=str(tmp_path), image_size=SIZE))
    stage.load()
    (rows,) = shards(stage.config)
    found = stage.annotate(rows)
    assert found.num_rows == 122
    status, error, images = (found[name].to_pylist() for name in ("status", "error", "image"))
    for one, reason, image in zip(status, error, images, strict=True):
        assert (one == "success") == (reason is None) == (image is not None)
        assert reason is None or reason in stage.reasons
    clean = CleanStage(CleanConfig())
    clean.load()
    live = found.filter(found["error"].is_null())
    annotated = clean.annotate(
        live.add_column(0, "uid", rows["uid"].filter(found["error"].is_null()))
    )
    assert annotated.num_rows == live.num_rows
    assert set(clean.judge(annotated).to_pylist()) - {None} <= set(clean.reasons)
    assert "undecodable" not in clean.judge(annotated).to_pylist()
    raw = live.set_column(
        live.schema.get_field_index("image"),
        "image",
        pa.array([mutated(seed, corpus()) for seed in range(live.num_rows)], pa.binary()),
    )
    verdicts = clean.judge(clean.annotate(raw)).to_pylist()
    assert set(verdicts) - {None} <= set(clean.reasons) and "undecodable" in verdicts


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(side: int, bits: int = 8, colour: int = 2, extra: bytes = b"", data: bytes = b"") -> bytes:
    """A black square; its data are given, or made without holding the image."""
    if not data:
        channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
        packer, line = zlib.compressobj(1), bytes(1 + side * channels * bits // 8)
        data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def looping_tiff() -> bytes:
    """A TIFF whose directory is followed by itself."""
    content = bytearray(encoded(picture(), "TIFF"))
    (start,) = struct.unpack("<I", content[4:8])
    (number,) = struct.unpack("<H", content[start : start + 2])
    content[start + 2 + 12 * number : start + 6 + 12 * number] = struct.pack("<I", start)
    return bytes(content)


def endless_scans(side: int, number: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    content = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * number + b"\xff\xd9"


def bombs() -> Iterator[tuple[str, bytes, str | None]]:
    """Files of a few kB that ask for much, and the reason that each is to be given."""
    side = 2500
    frames = [Image.new("RGB", (32, 32), (number % 251, number // 251, 0)) for number in range(600)]
    rest: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    packed = zlib.compress(bytes(2**25))
    text = b"".join(chunk(b"zTXt", b"k%d\0\0" % n + packed) for n in range(20))
    yield "rgb", png(side), None
    yield "rgba of 16 bits", png(side, 16, 6), None
    yield "grey of 16 bits", png(side, 16, 0), None
    palette = chunk(b"PLTE", b"\1\2\3") + chunk(b"tRNS", b"\0")
    yield "transparent palette", png(side, 8, 3, palette), None
    yield "text that inflates", png(64, extra=text), None
    profile = chunk(b"iCCP", b"k\0\0" + packed)
    yield "profile that inflates", png(64, extra=profile), None
    yield "data beyond the image", png(64, data=zlib.compress(bytes(2**27))), None
    yield "declared in gigapixels", png(60_000, data=packed), "too_many_pixels"
    yield "webp", encoded(Image.new("RGBA", (side, side)), "WEBP", lossless=True, method=0), None
    yield "cmyk", encoded(Image.new("CMYK", (side, side)), "TIFF", compression="tiff_lzw"), None
    yield (
        "floats",
        encoded(Image.new("F", (side, side)), "TIFF", compression="tiff_lzw"),
        "undecodable",
    )
    for kind in ("GIF", "PNG", "WEBP"):
        yield f"frames of {kind}", encoded(frames[0], kind, **rest), None
    yield "looping directories", looping_tiff(), None
    yield "endless scans", endless_scans(side, 400), "undecodable"


CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from stages.download.resize import Resize
resize = Resize(size=32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [resize(open(path, "rb").read()).error for path in sys.argv[1:]]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"errors": found, "kilobytes": after - before}))
"""


@pytest.mark.slow
def test_a_bomb_takes_no_more_memory_than_its_pixels(tmp_path: Path) -> None:
    told = {}
    for number, (name, content, error) in enumerate(bombs()):
        assert len(content) < 2_000_000, name
        path = tmp_path / str(number)
        path.write_bytes(content)
        told[str(path)] = name, error
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, *told], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    errors = dict(zip((name for name, _ in told.values()), found["errors"], strict=True))
    assert errors == dict(told.values())
    assert found["kilobytes"] * 1024 < 2500 * 2500 * 20


MODES: tuple[Mode, ...] = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")


@pytest.mark.parametrize(("mode", "bigger"), list(itertools.product(MODES, (True, False))))
def test_a_thin_image_is_never_enlarged_beyond_the_cap(mode: Mode, bigger: bool) -> None:
    thin = encoded(Image.new("RGB", (1, 20_000)), "PNG")
    found = Resize(size=384, mode=mode, only_if_bigger=bigger, max_pixels=MOST)(thin)
    if not bigger and mode in ("keep_ratio", "center_crop"):
        assert (found.error, found.image, found.width) == ("not_resized", None, None)
    else:
        assert found.error is None and found.width is not None and found.height is not None
        assert found.width * found.height <= MOST


def test_an_image_in_strips_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [decode(content).pixels for content in corpus()]
    for pixels in (1, 1000):
        monkeypatch.setattr(decoding, "_STRIP", pixels)
        for content, expected in zip(corpus(), whole, strict=True):
            assert np.array_equal(decode(content).pixels, expected)
