"""Images as data URLs, for requests to servers of vision-language models."""

from __future__ import annotations

import base64
import io

from PIL import Image, UnidentifiedImageError

from models.image.decode import decode

__all__ = ["data_url"]

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats that every server decodes, with their MIME types."""

QUALITY = 95


def data_url(image: bytes, longest: int) -> str:
    """An image as a data URL, resized so that the server has little to decode.

    A plain RGB image that is small enough is used unchanged; images of a pool are usually so. Any
    other image is decoded, resized with its aspect ratio kept, and encoded as JPEG.

    Args:
        image: The encoded image.
        longest: The most pixels of the longer side.

    Raises:
        ImageError: The image cannot be decoded.
    """
    decoded = decode(image, min_size=(2 * longest, 2 * longest))
    kind = None if max(decoded.width, decoded.height) > longest else _plain_format(image)
    if kind is not None:
        return _url(FORMATS[kind], image)
    opened = Image.fromarray(decoded.pixels)
    scale = longest / max(decoded.width, decoded.height)
    if scale < 1:
        size = max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale))
        opened = opened.resize(size, Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    opened.save(encoded, "JPEG", quality=QUALITY)
    return _url("image/jpeg", encoded.getvalue())


def _plain_format(image: bytes) -> str | None:
    """The format of a complete RGB image of one frame without EXIF data; None for any other."""
    try:
        opened = Image.open(io.BytesIO(image), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        return None
    with opened:
        is_plain = (
            opened.mode == "RGB"
            and not opened.has_transparency_data
            and not getattr(opened, "is_animated", False)
            and not opened.getexif()
            and (opened.format != "JPEG" or image.endswith(b"\xff\xd9"))
        )
        return opened.format if is_plain else None


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
