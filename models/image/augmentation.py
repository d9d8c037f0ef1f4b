"""Random augmentation of images for training, as in BLIP's released code (arXiv 2201.12086)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

__all__ = ["GREATEST", "Augment", "View"]

Augment = Literal["paper", "crop", "none"]

RANDOM_OPERATIONS = 2
"""RandAugment's N, the number of operations per image."""

GREATEST = 10
"""The maximum of RandAugment's magnitude M."""

GREY = (128, 128, 128)


def _shift(
    image: Image.Image, terms: tuple[float, float, float, float, float, float]
) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR, fillcolor=GREY
    )


# Each operation takes an image, a strength m from 0 to 1 and a sign s. None changes hue, since
# captions name colours.
OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, m, s: image,
    lambda image, m, s: ImageOps.autocontrast(image),
    lambda image, m, s: ImageOps.equalize(image),
    lambda image, m, s: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * m),
    lambda image, m, s: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * m),
    lambda image, m, s: _shift(image, (1, 0.3 * m * s, 0, 0, 1, 0)),
    lambda image, m, s: _shift(image, (1, 0, 0, 0.3 * m * s, 1, 0)),
    lambda image, m, s: _shift(image, (1, 0, 10 * m * s, 0, 1, 0)),
    lambda image, m, s: _shift(image, (1, 0, 0, 0, 1, 10 * m * s)),
    lambda image, m, s: image.rotate(30 * m * s, Image.Resampling.BILINEAR, fillcolor=GREY),
)
"""Identity, AutoContrast, Equalize, Brightness, Sharpness, ShearX, ShearY, TranslateX,
TranslateY, Rotate, with the strengths of BLIP's and ALBEF's released code: 0.1 to 1.9 times the
brightness or sharpness, which is 1 at BLIP's M = 5; a shear of at most 0.3; a translation of at
most 10 pixels at any image size; a rotation of at most 30 degrees."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Turns an image into a random view for one training step.

    Attributes:
        size: Side of the square view, in pixels.
        augment: `paper` is a random resized crop, a horizontal flip with probability 0.5, and
            RandAugment (N = 2, each with probability 0.5, no colour operations). `crop` is the crop
            only, for captions that mention left and right. `none` is the plain resize used in
            evaluation.
        crop_scale: Minimum share of the image's area that a crop keeps: 0.2 in pre-training and 0.5
            in fine-tuning.
        magnitude: RandAugment's M, from 0 to 10: 5 in BLIP, 7 in ALBEF.
    """

    size: int
    augment: Augment = "paper"
    crop_scale: float = 0.2
    magnitude: int = 5

    def __call__(self, image: Image.Image, rng: random.Random) -> npt.NDArray[np.uint8]:
        """Return a view of an RGB image, uint8 (size, size, 3); all randomness comes from `rng`."""
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
                    view = operation(view, self.magnitude / GREATEST, rng.choice((-1, 1)))
        return np.asarray(view)

    def _box(self, image: Image.Image, rng: random.Random) -> tuple[float, float, float, float]:
        """Choose a random crop with `crop_scale` to 1 of the area and an aspect of 3/4 to 4/3."""
        for _ in range(10):
            area = image.width * image.height * rng.uniform(self.crop_scale, 1)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if width <= image.width and height <= image.height:
                left = rng.uniform(0, image.width - width)
                top = rng.uniform(0, image.height - height)
                return left, top, left + width, top + height
        return 0, 0, image.width, image.height
