"""Fingerprints of images, by which dedup compares them; clean measures them too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from models.image import perceptual_hash
from models.image.decode import ImageError, open_rgb

__all__ = ["COLOURS", "LUMA", "PRINTS", "ImagePrints", "opened"]

COLOURS = 3 * perceptual_hash.GRID**2
LUMA = perceptual_hash.SIDE**2

PRINTS: dict[str, pa.DataType] = {
    "image_phash": pa.int64(),
    "image_contrast": pa.float32(),
    "image_colours": pa.binary(COLOURS),
    "image_luma": pa.binary(LUMA),
}
"""Fingerprint columns of an image; clean writes them too, so that dedup need not decode again."""


@dataclass(frozen=True, kw_only=True)
class ImagePrints:
    """The fingerprints of n images.

    Attributes:
        phash: (n,), `perceptual_hash.perceptual_hash`.
        contrast: (n,), standard deviation of brightness, on a scale of 255. It is -1 for an image
            that cannot be decoded, whose other fingerprints are 0.
        colours: (n, 192), `perceptual_hash.colour_grid`.
        luma: (n, 1024), `perceptual_hash.luma`.
    """

    phash: npt.NDArray[np.uint64]
    contrast: npt.NDArray[np.float32]
    colours: npt.NDArray[np.uint8]
    luma: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, images: Iterable[bytes | None]) -> ImagePrints:
        """Compute the fingerprints of encoded images."""
        return cls.taken(map(opened, images))

    @classmethod
    def taken(cls, images: Iterable[Image.Image | None]) -> ImagePrints:
        """Compute the fingerprints of images that `opened` has decoded."""
        lumas, grids, decoded = [], [], []
        number = 0
        for number, image in enumerate(images, 1):
            if image is not None:
                decoded.append(number - 1)
                lumas.append(perceptual_hash.luma(image))
                grids.append(perceptual_hash.colour_grid(image))
        phash = np.zeros(number, np.uint64)
        contrast = np.full(number, -1, np.float32)
        colours = np.zeros((number, COLOURS), np.uint8)
        luma = np.zeros((number, LUMA), np.uint8)
        if decoded:
            grey = np.array(lumas, np.uint8)
            phash[decoded] = perceptual_hash.perceptual_hash(grey)
            contrast[decoded] = [brightness.std(dtype=np.float64) for brightness in grey]
            colours[decoded] = np.array(grids, np.uint8).reshape(-1, COLOURS)
            luma[decoded] = grey.reshape(-1, LUMA)
        return cls(phash=phash, contrast=contrast, colours=colours, luma=luma)

    def columns(self) -> dict[str, pa.Array[Any]]:
        """Return the columns of `PRINTS`, null for an image that cannot be decoded."""
        is_undecodable = self.contrast < 0

        def binaries(rows: npt.NDArray[np.uint8]) -> pa.Array[Any]:
            values = [
                None if missing else row.tobytes()
                for missing, row in zip(is_undecodable, rows, strict=True)
            ]
            return pa.array(values, pa.binary(rows.shape[1]))

        return {
            "image_phash": pa.array(self.phash.view(np.int64), mask=is_undecodable),
            "image_contrast": pa.array(self.contrast, mask=is_undecodable),
            "image_colours": binaries(self.colours),
            "image_luma": binaries(self.luma),
        }


def opened(image: bytes | None) -> Image.Image | None:
    """Decode an image for fingerprints, a JPEG at reduced scale; None if it cannot be decoded."""
    if not image:
        return None
    try:
        # With less than six times the thumbnail's size, JPEG's own scaling alters the thumbnail.
        return open_rgb(image, min_size=(6 * perceptual_hash.SIDE, 6 * perceptual_hash.SIDE))
    except ImageError:
        return None
