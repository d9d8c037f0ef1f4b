"""Seeds and hashes that are equal on every machine and in every process."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["hash_of", "hashes", "seed_of", "splitmix", "uid_hashes"]

UInt64s = npt.NDArray[np.uint64]


def seed_of(*parts: object, bits: int = 63) -> int:
    """Return a seed for one purpose, such as `seed_of(seed, "order", epoch)`.

    Args:
        parts: A seed and its purpose; their string values are hashed in order.
        bits: Bits of the result, at most 64; torch and numpy accept 63.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> (64 - bits)


def hash_of(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hashes(texts: Iterable[object]) -> UInt64s:
    """Return `hash_of` of each text as an array."""
    digests = (hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def uid_hashes(uids: pa.ChunkedArray[Any]) -> UInt64s:
    """Return a 64-bit hash of each uid; a uid has 32 characters."""
    parts = [np.zeros(0, np.uint64)]
    for chunk in uids.cast(pa.binary()).cast(pa.binary(32)).chunks:
        buffer: Any = chunk.buffers()[1]
        words: UInt64s = np.frombuffer(buffer, "<u8").reshape(-1, 4)
        words = words[chunk.offset : chunk.offset + len(chunk)]
        parts.append(functools.reduce(lambda mixed, word: splitmix(mixed ^ word), words.T))
    return np.concatenate(parts)


def splitmix(values: int | UInt64s) -> UInt64s:
    """Hash 64-bit numbers with the finaliser of splitmix64 (Steele et al., 2014).

    Args:
        values: uint64 of any shape; a Python int, such as a seed, becomes an array of one element.
    """
    if isinstance(values, int):
        values = np.array([values % 2**64], np.uint64)
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
