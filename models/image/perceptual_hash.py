"""Fingerprints of images: a perceptual hash of brightness, and a grid of mean colours.

The hash is the 64-bit pHash of the ImageHash package. The grid distinguishes images that differ in
colour only, such as a red ball and a blue ball.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["GRID", "SIDE", "colour_distance", "colour_grid", "hamming", "luma", "perceptual_hash"]

SIDE = 32
"""Side of the thumbnail that is hashed, four times the side of the hash."""
GRID = 8
"""Cells of the colour grid along each side."""

UInt8s = npt.NDArray[np.uint8]
UInt64s = npt.NDArray[np.uint64]


def luma(image: Image.Image) -> UInt8s:
    """Return a thumbnail of the brightness of an image, uint8 (32, 32)."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hash(lumas: UInt8s) -> UInt64s:
    """Hash images by their coarse brightness, bit for bit as `imagehash.phash`.

    Each of the lowest 8 x 8 frequencies of the cosine transform, including the constant, is
    compared with their median.

    Args:
        lumas: Thumbnails from `luma`, (n, 32, 32).

    Returns:
        Hashes, (n,), with the first frequency in the highest bit. The hash of an image without
        contrast is meaningless.
    """
    import scipy.fft  # the import takes a quarter of a second, and drivers do not need it

    hashes = np.empty(len(lumas), np.uint64)
    for start in range(0, len(lumas), 1024):  # 1024 thumbnails need 8 MB of cosine transforms
        chunk = lumas[start : start + 1024].astype(np.float64)
        rows = scipy.fft.dct(chunk, axis=1)[:, :8]
        low = scipy.fft.dct(rows, axis=2)[:, :, :8].reshape(-1, 64)
        bits: npt.NDArray[np.bool_] = low > np.median(low, axis=1, keepdims=True)
        hashes[start : start + 1024] = np.packbits(bits, axis=1).view(">u8").ravel()
    return hashes


def colour_grid(image: Image.Image) -> UInt8s:
    """Return the mean colour of each cell of an RGB image, uint8 (8, 8, 3)."""
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX))


def hamming(a: UInt64s, b: UInt64s) -> UInt8s:
    """Return the number of bits in which hashes differ, elementwise."""
    bits: UInt8s = np.bitwise_count(a ^ b)
    return bits


def colour_distance(a: UInt8s, b: UInt8s) -> UInt8s:
    """Return the largest difference in any cell and channel between two (n, 192) grids, (n,)."""
    furthest: UInt8s = (np.maximum(a, b) - np.minimum(a, b)).max(axis=1, initial=0)
    return furthest
