"""Fingerprints of images: a perceptual hash of brightness, and a grid of mean colours.

The hash is the 64-bit pHash of the ImageHash package. The grid tells apart what a hash of
brightness cannot: a red ball and a blue ball in one place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["GRID", "SIDE", "colour_distance", "colour_grid", "hamming", "luma", "perceptual_hash"]

SIDE = 32
"""Side of the grey square that is hashed: four times the side of the hash."""
GRID = 8
"""Cells of the colour grid along each side."""

UInt8s = npt.NDArray[np.uint8]
UInt64s = npt.NDArray[np.uint64]


def luma(image: Image.Image) -> UInt8s:
    """The brightness of an image, (32, 32): what `perceptual_hash` reads."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hash(lumas: UInt8s) -> UInt64s:
    """Hash images by their coarse brightness; bit for bit `imagehash.phash`.

    The lowest 8 x 8 frequencies of the cosine transform, the constant included, each compared
    with their median.

    Args:
        lumas: From `luma`, (n, 32, 32).

    Returns:
        (n,), the first frequency in the highest bit. Images without contrast have meaningless
        hashes.
    """
    import scipy.fft  # a driver never hashes, and the import takes a quarter of a second

    hashes = np.empty(len(lumas), np.uint64)
    for start in range(0, len(lumas), 1024):  # 1024 squares make 8 MB of cosine transforms
        some = lumas[start : start + 1024].astype(np.float64)
        rows = scipy.fft.dct(some, axis=1)[:, :8]
        low = scipy.fft.dct(rows, axis=2)[:, :, :8].reshape(-1, 64)
        bits: npt.NDArray[np.bool_] = low > np.median(low, axis=1, keepdims=True)
        hashes[start : start + 1024] = np.packbits(bits, axis=1).view(">u8").ravel()
    return hashes


def colour_grid(image: Image.Image) -> UInt8s:
    """The mean colour of each cell of an RGB image, (8, 8, 3)."""
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX))


def hamming(a: UInt64s, b: UInt64s) -> UInt8s:
    """The number of bits in which hashes differ, elementwise."""
    bits: UInt8s = np.bitwise_count(a ^ b)
    return bits


def colour_distance(a: UInt8s, b: UInt8s) -> UInt8s:
    """The largest difference of any cell in any channel between two (n, 192) grids, (n,)."""
    furthest: UInt8s = (np.maximum(a, b) - np.minimum(a, b)).max(axis=1, initial=0)
    return furthest
