"""Encoded images as RGB, and as the pixels a vision transformer reads.

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

# Only formats of the web, all decoded in memory: Pillow's others start programs (EPS) or have
# parsers that see little use.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG
_MAX_SCANS = 500  # each costs a pass over the whole image, however few its bytes
_MAX_PASSED = 1_000_000_000  # pixels that all passes together may go over: seconds
_STRIP = 2**20  # pixels that are turned to RGB at once

ImageReason = Literal["not_an_image", "truncated", "undecodable", "too_many_pixels"]


class ImageError(ValueError):
    """An image that cannot be opened.

    Attributes:
        reason: not_an_image (no known format), truncated (the bytes end early), undecodable
            (the format is known, its content is broken) or too_many_pixels (over the cap, not
            decoded).
    """

    def __init__(self, reason: ImageReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: ImageReason = reason


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The pixels of an image, upright.

    Attributes:
        pixels: (height, width, 3), uint8, RGB; smaller than the image where it was reduced.
        width: Of the whole image.
        height: Of the whole image.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, *, min_size: tuple[int, int] | None = None
) -> Decoded:
    """Decode an image of unknown origin to upright RGB.

    The first frame, turned by its EXIF orientation (one outside 1 to 8 turns nothing), transparency
    laid over white, samples of 9 to 16 bits scaled to 8. Wider integers and floats are undecodable,
    because the file does not say which values are black and white. Colour profiles are left out, as
    img2dataset and OpenCV do: a picture in Display P3 or Adobe RGB is a little paler than it was
    meant. Of what else stands in a file, `containers.bare` keeps nothing. A JPEG is whole if all
    its scan lines are: the end marker may lack where it has one scan, but not where a further scan
    may have been cut off. Flaws that lose no scan line, as stray bytes between markers, are
    overlooked.

    Args:
        data: The encoded image.
        max_pixels: The cap on width x height, checked before anything is decoded.
        min_size: Where given, a JPEG may be decoded at 1/2, 1/4 or 1/8 scale, as long as neither
            side falls below this (width, height).

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
        most = min(_MAX_SCANS, _MAX_PASSED // max(width * height, 1))
        try:
            if file.scan is not None:
                _check_scans(file, image, most)
            if file.scan is not None and image.mode in ("RGB", "L"):
                pixels = _jpeg(file, image, min_size)
            else:
                if file.passes > most:
                    raise ImageError("undecodable", f"more than {most} scans")
                image.load()
                pixels = _pixels(image, file.bits)
                height, width = pixels.shape[:2]
            upright = file.orientation or orientation(_bytes(image, "exif"), _bytes(image, "xmp"))
            pixels = _turned(pixels, upright)
        except ImageError:
            raise
        except Exception as error:
            reason: ImageReason = "truncated" if _ends_early(error) else "undecodable"
            raise ImageError(reason, str(error)) from error
    if upright >= 5:
        width, height = height, width
    return Decoded(pixels=pixels, width=width, height=height)


def open_rgb(
    data: bytes, max_pixels: int = MAX_PIXELS, *, min_size: tuple[int, int] | None = None
) -> Image.Image:
    """`decode` an image of unknown origin to Pillow's kind of image, in RGB.

    Raises:
        ImageError: The image cannot be decoded; its `reason` says why.
    """
    return Image.fromarray(decode(data, max_pixels, min_size=min_size).pixels)


def _check_scans(file: Bare, image: Image.Image, most: int) -> None:
    """Refuse a JPEG of many scans, unless its first one holds all.

    Raises:
        ImageError: It has so many scans that it is meant to take hours.
    """
    assert file.scan is not None
    if _has_scans(file, image) and file.data.count(_SCAN, file.scan) > most:
        raise ImageError("undecodable", f"more than {most} scans")


def _has_scans(file: Bare, image: Image.Image) -> bool:
    assert file.scan is not None
    is_one = file.data[file.scan + 4] == len(image.getbands())
    return "progressive" in image.info or not is_one


def _jpeg(
    file: Bare, image: Image.Image, min_size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """The pixels of a JPEG as they lie, (height, width, 3).

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
    room = min(width // min_size[0], height // min_size[1]) if min_size else 1
    reduction = next((one for one in (8, 4, 2) if one <= room), 1)
    decoded = functools.partial(
        simplejpeg.decode_jpeg,
        data,
        "RGB",
        min_width=-(-width // reduction),
        min_height=-(-height // reduction),
    )
    try:
        return decoded(strict=True)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise ImageError("truncated", str(error)) from error
    return decoded(strict=False)


def _turned(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """The pixels turned by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _ends_early(error: Exception) -> bool:
    """Whether a decoder stopped for want of bytes, which Pillow tells by its message alone."""
    message = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in message or "unexpected end" in message


def _bytes(image: Image.Image, name: str) -> bytes:
    value = image.info.get(name, b"")
    return value if isinstance(value, bytes) else b""


def _pixels(image: Image.Image, bits: int | None = None) -> npt.NDArray[np.uint8]:
    """The pixels as RGB, (height, width, 3), beside which only a strip is held in other forms."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        return np.asarray(_as_rgb(image, bits))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(_as_rgb(strip, bits))
    return pixels


def _as_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    """The image as RGB, over white where it is transparent.

    Raises:
        ImageError: Its samples are of a range that nothing tells.
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
    """Encoded images to the input of BLIP's vision transformer, as its evaluation does.

    A direct resize to a square (the aspect ratio is not kept), then scaled to [0, 1] and
    normalised (arXiv:2201.12086; 384 pixels, bicubic, CLIP's mean and deviation).

    Attributes:
        size: The side of the square, in pixels.
        mean: Of each channel, on the scale [0, 1].
        std: Of each channel, on the scale [0, 1].
        resample: Pillow's filter.
        threads: How many images are decoded at once; no part of the result.
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
        """Read the settings that stock transformers saved beside a model.

        Takes preprocessor_config.json, or the image processor inside processor_config.json.
        Where a model has neither, the size comes from the vision settings of its config.json.

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
        """Write the preprocessor_config.json that stock BlipImageProcessor reads."""
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
            ImageError: The image cannot be opened.
        """
        # Two pixels left for each that is kept: below that, a JPEG's own reduction shows.
        opened = open_rgb(image, min_size=(2 * self.size, 2 * self.size))
        return np.asarray(opened.resize((self.size, self.size), self.resample))

    def normalize(self, squares: torch.Tensor) -> torch.Tensor:
        """Turn uint8 (n, size, size, 3) to float32 (n, 3, size, size), on the same device."""
        import torch

        mean = torch.tensor(self.mean, device=squares.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=squares.device).view(3, 1, 1)
        return squares.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)

    def __call__(self, images: Sequence[bytes]) -> torch.Tensor:
        """Decode, resize and normalise n images to float32 (n, 3, size, size).

        Raises:
            ImageError: An image cannot be opened.
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
