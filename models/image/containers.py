"""Strips image files to the parts that are needed to decode their pixels.

Metadata is untrusted too, and decoders process it in Python: millions of comments, text that
unpacks to gigabytes, tags whose values each span the whole file. It is removed here before a
decoder sees it. Headers are parsed in a bounded number of steps.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Bare", "CostlyError", "bare", "orientation"]

MOST_PARTS = 100_000
"""Maximum number of chunks, blocks or values of a header."""

MOST_SEGMENTS = 2_000
"""Maximum number of segments before the first scan of a JPEG; 320 segments of 64 KiB fill 20 MB."""

MOST_FILL = 2**16
"""Maximum number of fill bytes before the first scan of a JPEG."""

MOST_HEADER = 2**20
"""Maximum bytes before the codestream of a JPEG 2000, and of an RLE bitmap, which Pillow decodes in
Python."""

XMP_BYTES = 2**16
"""Bytes of an XMP packet that are searched for the orientation."""

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
"""Size of a value in bytes, by the type of its tag."""

TIFF_TAGS = {254, 255, 262, 266, 273, 284, 292, 293, 317, 320, 332, 338, 339, 347, 50674}
TIFF_TAGS |= {*range(256, 260), *range(277, 280), *range(322, 326), *range(512, 522)}
TIFF_TAGS |= {*range(529, 533)}
"""Tags that describe the layout and the colours of pixels."""

BITS, COMPRESSION, STRIPS, UPRIGHT, TILES = 258, 259, 273, 274, 324


class CostlyError(ValueError):
    """Reading the file would cost far more than its pixels justify."""


@dataclass(frozen=True, kw_only=True)
class Bare:
    """An image file without metadata.

    Attributes:
        data: The file.
        orientation: EXIF orientation, from 1 to 8; None if only the decoder can read it.
        scan: Position of the first scan of a JPEG.
        bits: Bits of the first sample of a TIFF.
        passes: Maximum number of further scans of JPEGs inside a TIFF.
    """

    data: bytes
    orientation: int | None = None
    scan: int | None = None
    bits: int | None = None
    passes: int = 0


def bare(data: bytes) -> Bare:
    """Strip the metadata of an image file.

    Raises:
        CostlyError: The header has more parts than any image needs.
        EOFError: The file ends within its header.
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
    """Return the EXIF orientation of an image, from 1 to 8; 1 if it is not given.

    Args:
        exif: EXIF data, a TIFF directory.
        xmp: An XMP packet, which is used if EXIF has no orientation.
    """
    exif = exif.removeprefix(EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is not None:
            (offset,) = struct.unpack_from(f"{order}I", exif, 4)
            (num_tags,) = struct.unpack_from(f"{order}H", exif, offset)
            for entry in range(offset + 2, offset + 2 + 12 * num_tags, 12):
                tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, entry)
                if tag == UPRIGHT:
                    value = struct.unpack_from(
                        order + {1: "B", 4: "I"}.get(kind, "H"), exif, entry + 8
                    )
                    return int(value[0]) if 1 <= value[0] <= 8 else 1
    except struct.error:
        return 1
    match = ORIENTATION.search(xmp[:XMP_BYTES])
    return int(match[1]) if match else 1


def _jpeg(data: bytes) -> Bare:
    """Strip a JPEG of comments and application segments, except those that define colours."""
    kept, exif, xmp = [data[:2]], b"", b""
    position, num_fill, num_segments = 2, 0, 0
    while markers := FILL.match(data, position):
        num_fill += len(markers[0]) - 1
        num_segments += 1
        if num_fill > MOST_FILL or num_segments > MOST_SEGMENTS:
            raise CostlyError("too much before the first scan")
        start, marker = markers.end() - 1, data[markers.end()]
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
    """Keep the critical chunks and the transparency of a PNG, unless its checksum is wrong."""
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
    """Strip a GIF of extensions, except the last graphic control before the first frame."""
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
    """Give a TIFF a single directory with only the tags that describe pixels."""
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
    value_bytes, upright, bits, compression, strips = 0, 1, None, 1, 1
    for position in range(at, at + size * number, size):
        tag, kind, num_values, value = struct.unpack_from(order + entry, data, position)
        first = struct.unpack_from(order + {1: "B", 3: "H"}.get(kind, "I"), value)[0]
        if tag == UPRIGHT:
            upright = first if 1 <= first <= 8 else 1
        if tag not in TIFF_TAGS or tag in kept:
            continue
        kept[tag] = data[position : position + size]
        value_bytes += TIFF_SIZES.get(kind, 8) * num_values
        is_inline = TIFF_SIZES.get(kind, 8) * num_values <= len(value)
        if tag == BITS:
            bits_at = first if is_inline else struct.unpack_from(order + offset, value)[0]
            bits = first if is_inline else struct.unpack_from(f"{order}H", data, bits_at)[0]
        elif tag == COMPRESSION:
            compression = first
        elif tag in (STRIPS, TILES):
            strips = num_values
    if value_bytes > len(data) or strips > MOST_PARTS:
        raise CostlyError("the values of tags are larger than the file")
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
    """Return an AVIF unchanged, unless the values of its tags exceed the file."""
    for number, match in enumerate(TIFF.finditer(data)):
        if number >= MOST_SEGMENTS:
            raise CostlyError("too many directories")
        exif, order = memoryview(data)[match.start() :], "<" if match[0][:1] == b"I" else ">"
        try:
            (offset,) = struct.unpack_from(f"{order}I", exif, 4)
            (num_tags,) = struct.unpack_from(f"{order}H", exif, offset)
            value_bytes = 0
            for position in range(offset + 2, offset + 2 + 12 * num_tags, 12):
                _, kind, values = struct.unpack_from(f"{order}HHI", exif, position)
                value_bytes += TIFF_SIZES.get(kind, 8) * values
        except struct.error:
            continue
        if value_bytes > len(data):
            raise CostlyError("the values of tags are larger than the file")
    return Bare(data=data)
