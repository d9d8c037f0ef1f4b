"""Resize: an image of any origin, as its encoded bytes, to what the pool keeps of it."""

from __future__ import annotations

import functools
import io
import os
import threading
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from models.image.decode import MAX_PIXELS, ImageError, decode

__all__ = ["RESIZE_REASONS", "Encoding", "Mode", "Resize", "Resized"]

Mode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
Encoding = Literal["jpg", "png", "webp"]

Pixels = npt.NDArray[np.uint8]

RESIZE_REASONS: dict[str, str] = {
    "svg": "It is a drawing in SVG, which has no pixels.",
    "not_an_image": "The bytes are no known image: often an HTML page.",
    "too_many_pixels": "Width times height is over `max_pixels`; it was not decoded.",
    "truncated": "The image ends early.",
    "undecodable": "The format is known, but the image is broken.",
    "not_resized": "It cannot be resized or encoded: a side is too long for JPEG, or enlarged it "
    "would be over `max_pixels`.",
}

_QUALITY: dict[Encoding, int] = {
    "jpg": cv2.IMWRITE_JPEG_QUALITY,
    "png": cv2.IMWRITE_PNG_COMPRESSION,
    "webp": cv2.IMWRITE_WEBP_QUALITY,
}

# img2dataset imports albumentations, which otherwise asks the internet for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# img2dataset's Resizer points the process's stdout and stderr elsewhere while it runs: two at once
# would lose them.
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

    The images are img2dataset's, made at less cost: `models.image.decode` gives upright RGB, a JPEG
    at 1/2, 1/4 or 1/8 scale as long as two pixels are left for each that is kept; these are halved
    by averaging as long as that leaves one, and what is left, down to a half, is bilinear:
    there the weights of img2dataset's area filter are nearly the same. On photographs of COCO at
    384 pixels the images differ from img2dataset's by 1.4 of 255 on average (PSNR 42 dB), of which
    0.5 is not JPEG's at quality 95.

    Modes that crop or pad, and images that are to be enlarged, go through img2dataset's Resizer,
    as an uncompressed PPM: it ignores EXIF orientation, keeps grey and 16-bit images as such and
    accepts images that end early.

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
        self.size = size
        self.mode = mode
        self.only_if_bigger = only_if_bigger
        self.encode_format = encode_format
        self.encode_quality = encode_quality
        self.max_pixels = max_pixels
        cv2.setNumThreads(1)  # its own threads cost more than they bring on images this small
        cv2.utils.logging.setLogLevel(0)  # what it cannot encode is told as a reason

    @functools.cached_property
    def _resizer(self) -> Any:
        from img2dataset.resizer import Resizer  # takes seconds, and most images need none

        return Resizer(
            self.size,
            self.mode,
            self.only_if_bigger,
            encode_quality=self.encode_quality,
            encode_format=self.encode_format,
        )

    def __call__(self, content: bytes) -> Resized:
        """The image resized and encoded, or the reason why it cannot be."""
        enough = 2 * self.size
        reduce = None if self.mode == "no" else (enough, enough)
        try:
            decoded = decode(content, self.max_pixels, min_size=reduce)
        except ImageError as error:
            is_svg = error.reason == "not_an_image" and _is_svg(content)
            return Resized(error="svg" if is_svg else error.reason)
        encoded: bytes | None
        width: int | None
        height: int | None
        if target := self._target(decoded.width, decoded.height):
            encoded = self._encode(_shrink(decoded.pixels, target))
            width, height = target if encoded else (None, None)
        else:
            encoded, width, height = self._by_resizer(decoded.pixels)
        return Resized(
            error=None if encoded else "not_resized",
            image=encoded,
            width=width,
            height=height,
            original_width=decoded.width,
            original_height=decoded.height,
        )

    def _target(self, width: int, height: int) -> tuple[int, int] | None:
        """The width and height to shrink to; nothing if shrinking is not what `mode` asks for."""
        if self.mode not in ("no", "keep_ratio", "keep_ratio_largest"):
            return None
        side = min(width, height) if self.mode == "keep_ratio" else max(width, height)
        if self.mode == "no" or side == self.size:
            return width, height
        if side < self.size:
            return (width, height) if self.only_if_bigger else None
        scale = self.size / side
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _encode(self, pixels: Pixels) -> bytes | None:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        parameters = [_QUALITY[self.encode_format], self.encode_quality]
        done, encoded = cv2.imencode(f".{self.encode_format}", bgr, parameters)
        return encoded.tobytes() if done else None

    def _by_resizer(self, pixels: Pixels) -> tuple[bytes | None, int | None, int | None]:
        height, width = pixels.shape[:2]
        by_shorter = self.mode in ("keep_ratio", "center_crop")
        scale = self.size / (min if by_shorter else max)(width, height)
        enlarged = scale > 1 and not self.only_if_bigger
        if enlarged and width * height * scale**2 > self.max_pixels:
            return None, None, None
        ppm = b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()
        with _RESIZING:
            encoded, width, height, *_ = self._resizer(io.BytesIO(ppm))
        return (encoded, width, height) if encoded else (None, None, None)


def _shrink(pixels: Pixels, target: tuple[int, int]) -> Pixels:
    """Average pairs as long as enough is left, then interpolate."""
    width, height = target
    while pixels.shape[0] >= 2 * height and pixels.shape[1] >= 2 * width:
        half_height, half_width = pixels.shape[0] // 2, pixels.shape[1] // 2
        even = pixels[: 2 * half_height, : 2 * half_width]
        halved = cv2.resize(even, (half_width, half_height), interpolation=cv2.INTER_AREA)
        pixels = cast(Pixels, halved)
    if pixels.shape[:2] == (height, width):
        return pixels
    return cast(Pixels, cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR))


def _is_svg(content: bytes) -> bool:
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith(b"<") and b"<svg" in head and b"<html" not in head
