"""Resize: an image of any origin, as its encoded bytes, to what the pool keeps of it."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from models.images import FORMATS, MAX_PIXELS, ImageError, open_rgb

__all__ = ["RESIZE_REASONS", "Encoding", "Mode", "Resize", "Resized"]

Mode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
Encoding = Literal["jpg", "png", "webp"]

RESIZE_REASONS: dict[str, str] = {
    "svg": "It is a drawing in SVG, which has no pixels.",
    "not_an_image": "The bytes are no known image: often an HTML page.",
    "too_many_pixels": "Width times height is over `max_pixels`; it was not decoded.",
    "truncated": "The image ends early.",
    "undecodable": "The format is known, but the image is broken.",
    "not_resized": "It cannot be resized or encoded, as with a side too long for JPEG.",
}

# Resizer points the process's stdout and stderr elsewhere while it runs: two at once would lose
# them.
_RESIZING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Resized:
    """An image as the pool keeps it, or why there is none.

    Attributes:
        error: One of `RESIZE_REASONS`, or nothing.
        image: The encoded image.
        width: Of `image`, in pixels.
        height: Of `image`, in pixels.
        original_width: Of the image given, once upright.
        original_height: Of the image given, once upright.
    """

    error: str | None = None
    image: bytes | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None


class Resize:
    """Decodes, resizes and encodes images of unknown origin.

    img2dataset's Resizer resizes and encodes. It decodes upright colour JPEGs itself; all others
    first become upright RGB (`models.images.open_rgb`) in an uncompressed PPM, since Resizer
    ignores EXIF orientation, keeps grey and 16-bit images as such and accepts images that end
    early.

    Args:
        size: Pixels that `mode` fits an image to.
        mode: img2dataset's resize_mode.
        only_if_bigger: Never enlarge.
        encode_format: Of what is kept.
        encode_quality: 0 to 100 for jpg and webp; for png a compression of 0 to 9.
        max_pixels: The cap on width x height, checked before anything is decoded.
    """

    def __init__(
        self,
        *,
        size: int,
        mode: Mode = "keep_ratio",
        only_if_bigger: bool = True,
        encode_format: Encoding = "jpg",
        encode_quality: int = 95,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its check goes to the internet
        from img2dataset.resizer import Resizer

        self.size = size
        self.mode = mode
        self.max_pixels = max_pixels
        self._resizer = Resizer(
            size, mode, only_if_bigger, encode_quality=encode_quality, encode_format=encode_format
        )

    def __call__(self, content: bytes) -> Resized:
        """The image resized and encoded, or the reason why it cannot be."""
        header = _Header.of(content)
        try:
            resized = self._resize(content) if self._is_plain(header, content) else None
            if resized is None:
                resized = self._resize(self._as_ppm(content))
        except ImageError as error:
            is_svg = error.reason == "not_an_image" and _is_svg(content)
            return Resized(error="svg" if is_svg else error.reason)
        encoded, width, height = resized or (None, None, None)
        return Resized(
            error=None if resized else "not_resized",
            image=encoded,
            width=width,
            height=height,
            original_width=header.width if header else None,
            original_height=header.height if header else None,
        )

    def _is_plain(self, header: _Header | None, content: bytes) -> bool:
        """Whether Resizer's own decoder gives what `_as_ppm` would, at less cost."""
        if header is None or not header.is_plain_jpeg:
            return False
        if header.width * header.height > self.max_pixels or not _has_end(content):
            return False
        reducible = min(header.width, header.height) >= 4 * self.size
        return self.mode == "no" or not reducible

    def _as_ppm(self, content: bytes) -> bytes:
        """The image as upright RGB in a format that costs nothing to read.

        A JPEG much larger than needed is decoded at a fraction of its size: at least two pixels
        are left for each that is kept.
        """
        enough = 2 * self.size
        reduce = None if self.mode == "no" else (enough, enough)
        image = open_rgb(content, self.max_pixels, min_size=reduce)
        return b"P6 %d %d 255\n" % image.size + image.tobytes()

    def _resize(self, content: bytes) -> tuple[bytes, int, int] | None:
        """The resized and encoded image, its width and its height; nothing if Resizer fails."""
        with _RESIZING:
            encoded, width, height, _, _, failure = self._resizer(io.BytesIO(content))
        return (encoded, width, height) if failure is None else None


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the first bytes of an image say: its size once upright, and its kind."""

    width: int
    height: int
    is_plain_jpeg: bool

    @classmethod
    def of(cls, content: bytes) -> _Header | None:
        """Read the header; nothing where there is none, of which `open_rgb` says why."""
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                plain = image.format == "JPEG" and image.mode == "RGB"
                orientation = _orientation(image)
        except Exception:  # a parser of untrusted bytes may raise anything
            return None
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return cls(width=width, height=height, is_plain_jpeg=plain and orientation == 1)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; broken EXIF turns nothing."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _has_end(jpeg: bytes) -> bool:
    """Whether the end-of-image marker comes after the start of the first scan.

    One before it belongs to a thumbnail in the EXIF.
    """
    position = 2
    while jpeg[position : position + 1] == b"\xff":
        if jpeg[position + 1 : position + 2] == b"\xda":
            return jpeg.find(b"\xff\xd9", position) >= 0
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return False


def _is_svg(content: bytes) -> bool:
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith(b"<") and b"<svg" in head and b"<html" not in head
