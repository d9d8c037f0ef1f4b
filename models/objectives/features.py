"""Features of a frozen encoder, which are computed once for each image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CACHE_BYTES", "Features"]

CACHE_BYTES = 1 << 30
"""Bytes of features that are kept in memory; those of other images are computed every time."""


class Features:
    """Features by image, for a frozen encoder and images that are not augmented.

    A batch with an image that is not in the cache is encoded whole. The features of an image then
    do not depend on which others are in the cache, and a training that resumes with an empty cache
    computes the same.

    Args:
        room: Maximum size of the cache in bytes.
    """

    def __init__(self, room: int = CACHE_BYTES) -> None:
        self.room = room
        self.known: dict[int, Tensor] = {}

    def __call__(self, ids: Tensor, pixels: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features (n, ...) of images.

        Args:
            ids: int64 (n,), equal for equal images.
            pixels: (n, 3, S, S), normalised.
            encode: Computes the features of all n images.
        """
        keys = ids.tolist()
        if all(key in self.known for key in keys):
            return torch.stack([self.known[key] for key in keys]).to(pixels.device)
        features = encode(pixels).detach()
        for key, one in zip(keys, features.cpu(), strict=True):
            if key not in self.known and one.nbytes <= self.room:
                self.room -= one.nbytes
                self.known[key] = one.clone()
        return features
