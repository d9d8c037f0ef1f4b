"""Decodes untrusted images to RGB, and preprocesses them for vision transformers.

Only `Preprocess` imports torch, and only when it is called.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from models.image.containers import Bare, CostlyError, bare, orientation

if TYPE_CHECKING:
    import torch

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_PIXELS",
    "Decoded",
    "ImageError",
    "ImageReason",
    "Preprocess",
    "decode",
    "open_rgb",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a GiB of decoded RGB."""

# Only formats of the web. Pillow's other formats start programs (EPS) or have rarely used parsers.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG
_MAX_SCANS = 500  # each scan is a pass over the whole image, even if it has few bytes
_MAX_PASSED = 1_000_000_000  # total pixels of all passes, which take seconds
_STRIP = 2**20  # pixels converted to RGB at once

ImageReason = Literal["not_an_image", "truncated", "undecodable", "too_many_pixels"]


class ImageError(ValueError):
    """An image that cannot be decoded.

    Attributes:
        reason: not_an_image (unknown format), truncated (the file ends early), undecodable (known
            format, but broken) or too_many_pixels (over the maximum, not decoded).
    """

    def __init__(self, reason: ImageReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: ImageReason = reason


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The pixels of an image after EXIF orientation.

    Attributes:
        pixels: RGB, uint8 (height, width, 3); smaller than the image if it was decoded at reduced
            scale.
        width: Width of the full image, in pixels.
        height: Height of the full image, in pixels.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, *, min_size: tuple[int, int] | None = None
) -> Decoded:
    """Decode an untrusted image to upright RGB.

    Decodes the first frame and applies its EXIF orientation (an invalid one is ignored).
    Transparency is composited over white. Samples of 9 to 16 bits are scaled to 8; wider integers
    and floats are undecodable, since the file does not say which values are black and white. Colour
    profiles are ignored, as in img2dataset and OpenCV, so images in Display P3 or Adobe RGB look a
    little paler. All other metadata is removed by `containers.bare`.

    A JPEG is complete if all its scan lines are. A single-scan JPEG may lack the end marker; one
    with several scans may not, since a scan could be missing. Damage that loses no scan line, such
    as stray bytes between markers, is ignored.

    Args:
        data: The encoded image.
        max_pixels: Maximum of width x height, checked before decoding.
        min_size: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 scale, as long as it stays at
            least this (width, height).

    Raises:
        ImageError: The image cannot be decoded; its `reason` says why.
    """
    try:
        file = bare(data)
    except CostlyError as error:
        raise ImageError("undecodable", str(error)) from error
    except EOFError as error:
        raise ImageError("truncated", str(error)) from error
    try:
        image = Image.open(io.BytesIO(file.data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_many_pixels", str(error)) from error
    except Exception as error:  # a parser of untrusted bytes may raise anything
        raise ImageError("undecodable", str(error)) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height} is over {max_pixels}")
        max_scans = min(_MAX_SCANS, _MAX_PASSED // max(width * height, 1))
        try:
            if file.scan is not None:
                _check_scans(file, image, max_scans)
            if file.scan is not None and image.mode in ("RGB", "L"):
                pixels = _jpeg(file, image, min_size)
            else:
                if file.passes > max_scans:
                    raise ImageError("undecodable", f"more than {max_scans} scans")
                image.load()
                pixels = _pixels(image, file.bits)
                height, width = pixels.shape[:2]
            turn = file.orientation or orientation(_bytes(image, "exif"), _bytes(image, "xmp"))
            pixels = _turned(pixels, turn)
        except ImageError:
            raise
        except Exception as error:
            reason: ImageReason = "truncated" if _ends_early(error) else "undecodable"
            raise ImageError(reason, str(error)) from error
    if turn >= 5:
        width, height = height, width
    return Decoded(pixels=pixels, width=width, height=height)


def open_rgb(
    data: bytes, max_pixels: int = MAX_PIXELS, *, min_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an untrusted image to a Pillow image in RGB; see `decode`.

    Raises:
        ImageError: The image cannot be decoded; its `reason` says why.
    """
    return Image.fromarray(decode(data, max_pixels, min_size=min_size).pixels)


def _check_scans(file: Bare, image: Image.Image, max_scans: int) -> None:
    """Refuse a JPEG with too many scans.

    Raises:
        ImageError: It has so many scans that decoding would take hours.
    """
    assert file.scan is not None
    if _has_scans(file, image) and file.data.count(_SCAN, file.scan) > max_scans:
        raise ImageError("undecodable", f"more than {max_scans} scans")


def _has_scans(file: Bare, image: Image.Image) -> bool:
    assert file.scan is not None
    is_single = file.data[file.scan + 4] == len(image.getbands())
    return "progressive" in image.info or not is_single


def _jpeg(
    file: Bare, image: Image.Image, min_size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG to (height, width, 3), without applying its orientation.

    Raises:
        ImageError: It is truncated.
        ValueError: It is broken.
    """
    width, height = image.size
    data = file.data
    if not data.endswith(_END) and data.find(_END, file.scan) < 0:
        if _has_scans(file, image):
            raise ImageError("truncated", "no end after the last scan")
        data += _END
    max_reduction = min(width // min_size[0], height // min_size[1]) if min_size else 1
    reduction = next((factor for factor in (8, 4, 2) if factor <= max_reduction), 1)
    decode_scaled = functools.partial(
        simplejpeg.decode_jpeg,
        data,
        "RGB",
        min_width=-(-width // reduction),
        min_height=-(-height // reduction),
    )
    try:
        return decode_scaled(strict=True)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise ImageError("truncated", str(error)) from error
    return decode_scaled(strict=False)


def _turned(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Apply an EXIF orientation to pixels."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _ends_early(error: Exception) -> bool:
    """Whether a decoder ran out of bytes; Pillow says so only in its error message."""
    message = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in message or "unexpected end" in message


def _bytes(image: Image.Image, name: str) -> bytes:
    value = image.info.get(name, b"")
    return value if isinstance(value, bytes) else b""


def _pixels(image: Image.Image, bits: int | None = None) -> npt.NDArray[np.uint8]:
    """Convert an image to RGB, (height, width, 3), one strip at a time to save memory."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return np.asarray(_as_rgb(image, bits))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(_as_rgb(strip, bits))
    return pixels


def _as_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    """Convert an image to RGB, composited over white.

    Raises:
        ImageError: The range of its samples is unknown.
    """
    if image.mode in ("I", "F"):
        raise ImageError("undecodable", "samples of 32 bits, whose range is unknown")
    if image.mode.startswith("I"):
        values = np.asarray(image) >> max((bits or 16) - 8, 0)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Turns encoded images into the input of BLIP's vision transformer, as in its evaluation.

    Images are resized to a square (the aspect ratio is not kept), scaled to [0, 1] and normalised
    (arXiv:2201.12086; 384 pixels, bicubic, CLIP's mean and standard deviation).

    Attributes:
        size: Side of the square, in pixels.
        mean: Mean of each channel, on the scale [0, 1].
        std: Standard deviation of each channel, on the scale [0, 1].
        resample: Pillow's resampling filter.
        threads: Number of images decoded at once; does not change the result.
    """

    size: int = 384
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: Image.Resampling = Image.Resampling.BICUBIC
    threads: int = field(default=4, compare=False)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, revision: str | None = None, *, threads: int = 4
    ) -> Self:
        """Read the settings that transformers saved with a model.

        Reads preprocessor_config.json, or the image processor in processor_config.json. If a model
        has neither, the size is that of the vision settings in its config.json.

        Raises:
            ValueError: The settings describe another kind of preprocessing.
        """
        from transformers.utils.hub import cached_file

        def read(name: str) -> dict[str, Any] | None:
            path = cached_file(
                str(model),
                name,
                revision=revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

        settings = read("preprocessor_config.json")
        if settings is None:
            settings = (read("processor_config.json") or {}).get("image_processor")
        if settings is None:
            vision = (read("config.json") or {}).get("vision_config", {})
            settings = {"size": vision.get("image_size", cls.size)}
        return cls._from_settings(settings, str(model), threads)

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], model: str, threads: int) -> Self:
        size = settings.get("size", cls.size)
        if isinstance(size, dict):
            sides = {size.get("height"), size.get("width")}
            size = sides.pop() if len(sides) == 1 else None
        steps = ("do_resize", "do_rescale", "do_normalize")
        scale = settings.get("rescale_factor", 1 / 255)
        if (
            not isinstance(size, int)
            or settings.get("do_center_crop")
            or settings.get("do_pad")
            or not all(settings.get(step, True) for step in steps)
            or abs(scale * 255 - 1) > 1e-3
        ):
            raise ValueError(
                f"the image processor of {model!r} is not BLIP's (resize to a square, rescale by "
                f"1/255, normalise), got {settings}; use a BLIP checkpoint"
            )
        return cls(
            size=size,
            mean=_three(settings.get("image_mean") or cls.mean),
            std=_three(settings.get("image_std") or cls.std),
            resample=Image.Resampling(settings.get("resample", cls.resample)),
            threads=threads,
        )

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json for transformers' BlipImageProcessor."""
        settings = {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "BlipImageProcessor",
            "image_std": list(self.std),
            "processor_class": "BlipProcessor",
            "resample": int(self.resample),
            "rescale_factor": 1 / 255,
            "size": {"height": self.size, "width": self.size},
        }
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=2, sort_keys=True)
        (path / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")

    def square(self, image: bytes) -> npt.NDArray[np.uint8]:
        """Decode and resize one image to (size, size, 3), uint8.

        Raises:
            ImageError: The image cannot be decoded.
        """
        # At less than twice the size, JPEG's own scaling would change the result.
        opened = open_rgb(image, min_size=(2 * self.size, 2 * self.size))
        return np.asarray(opened.resize((self.size, self.size), self.resample))

    def normalize(self, squares: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 (n, size, size, 3) to float32 (n, 3, size, size), on the same device."""
        import torch

        mean = torch.tensor(self.mean, device=squares.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=squares.device).view(3, 1, 1)
        return squares.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)

    def __call__(self, images: Sequence[bytes]) -> torch.Tensor:
        """Decode, resize and normalise n images to float32 (n, 3, size, size).

        Raises:
            ImageError: An image cannot be decoded.
        """
        import torch

        squares = np.empty((len(images), self.size, self.size, 3), np.uint8)
        with ThreadPoolExecutor(self.threads) as pool:
            for index, square in enumerate(pool.map(self.square, images)):
                squares[index] = square
        return self.normalize(torch.from_numpy(squares))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
