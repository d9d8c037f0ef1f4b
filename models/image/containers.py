"""Image files cut down to what their pixels need.

What stands around the pixels is untrusted too, and decoders read it in Python: comments by the
million, text that unpacks to gigabytes, tags that each name the whole file as their value. None of
it reaches them. Headers are walked for a bounded number of steps, and passed over in C.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Bare", "CostlyError", "bare", "orientation"]

MOST_PARTS = 100_000
"""Chunks, blocks or values of a header that are walked."""

MOST_SEGMENTS = 2_000
"""Segments before the first scan of a JPEG, each of up to 64 KiB: 320 fill 20 MB."""

MOST_FILL = 2**16
"""Fill bytes before the first scan of a JPEG."""

MOST_HEADER = 2**20
"""Bytes before the codestream of a JPEG 2000, and of an RLE bitmap, which is decoded in Python."""

XMP_BYTES = 2**16
"""Of an XMP packet, where its orientation is looked for."""

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
XMP_TEXT = b"XML:com.adobe.xmp\0\0\0"
ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])\b")
FILL = re.compile(rb"\xff+")
TIFF = re.compile(rb"II\*\0|MM\0\*")

TIFF_SIZES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
"""Bytes of a value by the type of its tag."""

TIFF_TAGS = {254, 255, 262, 266, 273, 284, 292, 293, 317, 320, 332, 338, 339, 347, 50674}
TIFF_TAGS |= {*range(256, 260), *range(277, 280), *range(322, 326), *range(512, 522)}
TIFF_TAGS |= {*range(529, 533)}
"""Tags that say how pixels lie and what colours they are of."""

BITS, COMPRESSION, STRIPS, UPRIGHT, TILES = 258, 259, 273, 274, 324


class CostlyError(ValueError):
    """To read the file would cost far more than its pixels are worth."""


@dataclass(frozen=True, kw_only=True)
class Bare:
    """An image file without what its pixels do not need.

    Attributes:
        data: The file.
        orientation: As EXIF has it, from 1 to 8; none where the decoder is to be asked.
        scan: Of a JPEG, where the first scan starts.
        bits: Of a TIFF, the bits of its first sample.
        passes: Of JPEGs within a file, how many scans there may be.
    """

    data: bytes
    orientation: int | None = None
    scan: int | None = None
    bits: int | None = None
    passes: int = 0


def bare(data: bytes) -> Bare:
    """Cut an image file down.

    Raises:
        CostlyError: Its header has more parts than any image needs.
        EOFError: It ends within its header.
    """
    readers: tuple[tuple[bytes, Callable[[bytes], Bare]], ...] = (
        (b"\xff\xd8\xff", _jpeg),
        (b"\x89PNG\r\n\x1a\n", _png),
        (b"GIF8", _gif),
        (b"II*\0", _tiff),
        (b"MM\0*", _tiff),
        (b"II+\0", _tiff),
        (b"MM\0+", _tiff),
        (b"BM", _bmp),
        (b"\xff\x4f\xff\x51", _jpeg2000),
        (b"\0\0\0\x0cjP", _jpeg2000),
    )
    for start, read in readers:
        if data.startswith(start):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise EOFError("the header is truncated") from error
    return _avif(data) if data[4:8] == b"ftyp" else Bare(data=data)


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """How a picture lies, from 1 to 8; 1 where neither EXIF nor XMP tells.

    Args:
        exif: A directory of tags as of a TIFF.
        xmp: A packet of XMP, which counts where there is no such tag.
    """
    exif = exif.removeprefix(EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is not None:
            (at,) = struct.unpack_from(f"{order}I", exif, 4)
            (number,) = struct.unpack_from(f"{order}H", exif, at)
            for entry in range(at + 2, at + 2 + 12 * number, 12):
                tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, entry)
                if tag == UPRIGHT:
                    value = struct.unpack_from(
                        order + {1: "B", 4: "I"}.get(kind, "H"), exif, entry + 8
                    )
                    return int(value[0]) if 1 <= value[0] <= 8 else 1
    except struct.error:
        return 1
    found = ORIENTATION.search(xmp[:XMP_BYTES])
    return int(found[1]) if found else 1


def _jpeg(data: bytes) -> Bare:
    """Without comments and application segments but those that tell the colours."""
    kept, exif, xmp = [data[:2]], b"", b""
    position, fill, segments = 2, 0, 0
    while marks := FILL.match(data, position):
        fill += len(marks[0]) - 1
        segments += 1
        if fill > MOST_FILL or segments > MOST_SEGMENTS:
            raise CostlyError("too much before the first scan")
        start, marker = marks.end() - 1, data[marks.end()]
        if marker == 0xDA:
            head = b"".join(kept)
            upright = orientation(exif, xmp)
            return Bare(data=head + data[start:], orientation=upright, scan=len(head))
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position = start + 2
            continue
        position = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        body = data[start + 4 : position]
        if marker == 0xE1 and body.startswith(EXIF):
            exif = exif or body
        elif marker == 0xE1 and body.startswith(XMP):
            xmp = xmp or body
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[start:position])
    return Bare(data=data)


def _png(data: bytes) -> Bare:
    """The critical chunks and the transparency; a chunk whose checksum is wrong is none."""
    kept, exif, xmp = [data[:8]], b"", b""
    position = 8
    for _ in range(MOST_PARTS):
        head = data[position : position + 8]
        if len(head) < 8:
            break
        end = position + 12 + int.from_bytes(head[:4], "big")
        kind = head[4:]
        if not kind[0] & 0x20:
            kept.append(data[position:end])
        elif kind == b"tRNS":
            checksum = zlib.crc32(memoryview(data)[position + 4 : end - 4])
            if data[end - 4 : end] == checksum.to_bytes(4, "big"):
                kept.append(data[position:end])
        elif kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind == b"iTXt" and data.startswith(XMP_TEXT, position + 8):
            xmp = data[position + 8 : min(end - 4, position + XMP_BYTES)]
        position = end
        if kind == b"IEND":
            break
    else:
        raise CostlyError("too many chunks")
    return Bare(data=b"".join(kept), orientation=orientation(exif, xmp))


def _gif(data: bytes) -> Bare:
    """Without extensions but the last control before the first frame."""
    head = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    control, position = b"", head
    for _ in range(MOST_PARTS):
        if data[position] in (0x2C, 0x3B):
            return Bare(data=data[:head] + control + data[position:], orientation=1)
        if data[position] != 0x21:
            position += 1
            continue
        start, position = position, position + 2
        for _ in range(MOST_PARTS):
            size = data[position]
            position += 1 + size
            if not size:
                break
        else:
            raise CostlyError("too many blocks")
        if data[start + 1] == 0xF9:
            control = data[start:position]
    raise CostlyError("too many blocks")


def _tiff(data: bytes) -> Bare:
    """With a directory of nothing but what tells the pixels, followed by no other."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    offset, count, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    pointer = 8 if is_big else 4
    (at,) = struct.unpack_from(order + offset, data, pointer)
    (number,) = struct.unpack_from(order + count, data, at)
    if number > MOST_PARTS:
        raise CostlyError("too many tags")
    at += struct.calcsize(order + count)
    size = struct.calcsize(order + entry)
    kept: dict[int, bytes] = {}
    named, upright, bits, compression, strips = 0, 1, None, 1, 1
    for place in range(at, at + size * number, size):
        tag, kind, many, value = struct.unpack_from(order + entry, data, place)
        first = struct.unpack_from(order + {1: "B", 3: "H"}.get(kind, "I"), value)[0]
        if tag == UPRIGHT:
            upright = first if 1 <= first <= 8 else 1
        if tag not in TIFF_TAGS or tag in kept:
            continue
        kept[tag] = data[place : place + size]
        named += TIFF_SIZES.get(kind, 8) * many
        is_inline = TIFF_SIZES.get(kind, 8) * many <= len(value)
        if tag == BITS:
            here = first if is_inline else struct.unpack_from(order + offset, value)[0]
            bits = first if is_inline else struct.unpack_from(f"{order}H", data, here)[0]
        elif tag == COMPRESSION:
            compression = first
        elif tag in (STRIPS, TILES):
            strips = many
    if named > len(data) or strips > MOST_PARTS:
        raise CostlyError("tags of more than the file")
    directory = struct.pack(order + count, len(kept)) + b"".join(kept[tag] for tag in sorted(kept))
    start = len(data) + len(data) % 2
    head = data[:pointer] + struct.pack(order + offset, start)
    body = data[len(head) :] + bytes(len(data) % 2)
    passes = data.count(b"\xff\xda") - strips if compression in (6, 7) else 0
    return Bare(
        data=head + body + directory + bytes(struct.calcsize(offset)),
        orientation=upright,
        bits=bits,
        passes=passes,
    )


def _bmp(data: bytes) -> Bare:
    if int.from_bytes(data[30:34], "little") in (1, 2) and len(data) > MOST_HEADER:
        raise CostlyError("too many runs")
    return Bare(data=data, orientation=1)


def _jpeg2000(data: bytes) -> Bare:
    start = data.find(b"\xff\x4f\xff\x51", 0, MOST_HEADER)
    if start < 0:
        raise CostlyError("no codestream near the start")
    position = start + 2
    for _ in range(MOST_PARTS):
        if data[position + 1] in (0x90, 0xD9):
            return Bare(data=data)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise CostlyError("too many segments")


def _avif(data: bytes) -> Bare:
    """As it is, unless tags within it name more than the file."""
    for number, found in enumerate(TIFF.finditer(data)):
        if number >= MOST_SEGMENTS:
            raise CostlyError("too many directories")
        exif, order = memoryview(data)[found.start() :], "<" if found[0][:1] == b"I" else ">"
        try:
            (at,) = struct.unpack_from(f"{order}I", exif, 4)
            (many,) = struct.unpack_from(f"{order}H", exif, at)
            named = 0
            for place in range(at + 2, at + 2 + 12 * many, 12):
                _, kind, values = struct.unpack_from(f"{order}HHI", exif, place)
                named += TIFF_SIZES.get(kind, 8) * values
        except struct.error:
            continue
        if named > len(data):
            raise CostlyError("tags of more than the file")
    return Bare(data=data)
