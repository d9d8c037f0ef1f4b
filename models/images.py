"""Encoded images as RGB, and as the pixels a vision transformer reads.

`open_rgb` needs Pillow alone; only `Preprocess` imports torch, and only when it is called.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_PIXELS",
    "ImageError",
    "ImageReason",
    "Preprocess",
    "open_rgb",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a GiB of decoded RGB."""

# Only formats of the web, all decoded in memory: Pillow's others start programs (EPS) or have
# parsers that see little use.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

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


def open_rgb(
    data: bytes, max_pixels: int = MAX_PIXELS, *, min_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an image of unknown origin to upright RGB.

    The first frame, turned by its EXIF orientation, transparency laid over white, 16-bit values
    scaled to 8.

    Args:
        data: The encoded image.
        max_pixels: The cap on width x height, checked before anything is decoded.
        min_size: Where given, a JPEG may be decoded at 1/2, 1/4 or 1/8 scale, as long as neither
            side falls below this (width, height).

    Raises:
        ImageError: The image cannot be opened; its `reason` says why.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
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
        try:
            if min_size is not None and image.format in ("JPEG", "MPO") and image.mode != "CMYK":
                image.draft(None, min_size)
            image.load()
        except Exception as error:
            reason: ImageReason = "truncated" if _ends_early(error) else "undecodable"
            raise ImageError(reason, str(error)) from error
        try:
            return _as_rgb(_upright(image))
        except Exception as error:
            raise ImageError("undecodable", str(error)) from error


def _ends_early(error: Exception) -> bool:
    """Whether a decoder stopped for want of bytes, which Pillow tells by its message alone."""
    message = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in message or "unexpected end" in message


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; broken EXIF turns nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are whole, whatever the tags say
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, over white where it is transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
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
