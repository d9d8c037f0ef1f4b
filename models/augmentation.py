"""Random views of an image for training, as BLIP takes them (arXiv 2201.12086)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

__all__ = ["Augment", "View"]

Augment = Literal["paper", "crop", "none"]

MAGNITUDE = 0.5
"""RandAugment's M = 5 on its scale of 10."""

RANDOM_OPERATIONS = 2
"""RandAugment's N."""

GREY = (128, 128, 128)


def _shift(
    image: Image.Image, terms: tuple[float, float, float, float, float, float]
) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR, fillcolor=GREY
    )


# Each takes an image and a strength, MAGNITUDE with a random sign. No operation touches hue:
# captions name colours.
OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, _: image,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
    lambda image, m: _shift(image, (1, 0.3 * m, 0, 0, 1, 0)),
    lambda image, m: _shift(image, (1, 0, 0, 0.3 * m, 1, 0)),
    lambda image, m: _shift(image, (1, 0, 0.2 * m * image.width, 0, 1, 0)),
    lambda image, m: _shift(image, (1, 0, 0, 0, 1, 0.2 * m * image.height)),
    lambda image, m: image.rotate(30 * m, Image.Resampling.BILINEAR, fillcolor=GREY),
)
"""Identity, AutoContrast, Equalize, Brightness, Sharpness, ShearX, ShearY, TranslateX,
TranslateY, Rotate."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An image as one training step sees it.

    Attributes:
        size: The side of the square, in pixels.
        augment: `paper` is a random resized crop, a mirror half of the time and RandAugment
            (N = 2, M = 5, each with probability one half, no colour operations); `crop` is the
            crop alone, for captions that tell left from right; `none` is the plain resize of
            evaluation.
        crop_scale: The least share of the image's area that a crop keeps: 0.2 in pre-training and
            0.5 in fine-tuning.
    """

    size: int
    augment: Augment = "paper"
    crop_scale: float = 0.2

    def __call__(self, image: Image.Image, rng: random.Random) -> npt.NDArray[np.uint8]:
        """A view of an RGB image: uint8 (size, size, 3), a function of the image and `rng`."""
        square = (self.size, self.size)
        if self.augment == "none":
            return np.asarray(image.resize(square, Image.Resampling.BICUBIC))
        box = self._box(image, rng)
        view = image.resize(square, Image.Resampling.BICUBIC, box=box)
        if self.augment == "paper":
            if rng.random() < 0.5:
                view = ImageOps.mirror(view)
            for _ in range(RANDOM_OPERATIONS):
                operation = rng.choice(OPERATIONS)
                if rng.random() < 0.5:
                    view = operation(view, rng.choice((-MAGNITUDE, MAGNITUDE)))
        return np.asarray(view)

    def _box(self, image: Image.Image, rng: random.Random) -> tuple[float, float, float, float]:
        """A random crop with a share of the area from `crop_scale` to 1 and a mild aspect."""
        for _ in range(10):
            area = image.width * image.height * rng.uniform(self.crop_scale, 1)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if width <= image.width and height <= image.height:
                left = rng.uniform(0, image.width - width)
                top = rng.uniform(0, image.height - height)
                return left, top, left + width, top + height
        return 0, 0, image.width, image.height
