"""Finds near-duplicate captions with MinHash and LSH, and verifies each candidate.

The signatures (Broder 1997) are bit for bit those of datasketch. Its index needs about 5 kB of
Python objects per caption; here the band hashes are sorted, and only captions that share one are
compared.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["band_keys", "caption_centres", "frame", "minhash", "shingles"]

FRAME_WORDS = 6
"""Minimum number of words that are not numbers for the numbers in a caption to be ignored."""

UInt32s = npt.NDArray[np.uint32]
UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


def frame(key: str) -> str:
    """Replace the numbers in a caption key by `#`, if at least six other words are left.

    "Photo number 17 of our summer fair" is a template of a website, while the number matters in
    "1963 yearbook".
    """
    words = key.split(" ")
    masked = ["#" if word.isdecimal() else word for word in words]
    if len(masked) - masked.count("#") < FRAME_WORDS:
        return key
    return " ".join(masked)


def shingles(key: str) -> list[bytes]:
    """Return the distinct word trigrams of the `frame` of a caption key, in order.

    A caption of fewer than five words is a single shingle, so short captions are either equal or
    have nothing in common. Trigrams are used because "a red ball above a blue kite" and "a blue
    kite above a red ball" have nearly the same bigrams.
    """
    words = frame(key).split(" ")
    if len(words) < 5:
        return [key.encode()]
    return list({" ".join(words[i : i + 3]).encode(): None for i in range(len(words) - 2)})


def minhash(sets: Sequence[Sequence[bytes]], num_perm: int = 128) -> UInt32s:
    """Compute MinHash signatures, bit for bit those of `datasketch.MinHash(num_perm)`.

    Args:
        sets: n sets, each with at least one shingle.
        num_perm: Hash values per signature.

    Returns:
        Signatures, (n, num_perm).
    """
    from datasketch import MinHash  # imports much of scipy, which drivers do not need

    a, b = MinHash(num_perm).permutations
    signatures = np.empty((len(sets), num_perm), np.uint32)
    for start in range(0, len(sets), 1024):  # 1024 captions need about 5 MB of permuted hashes
        chunk = sets[start : start + 1024]
        digests = b"".join(
            hashlib.sha1(shingle).digest()[:4] for shingled in chunk for shingle in shingled
        )
        hashes = _mix(np.frombuffer(digests, "<u4").astype(np.uint32))
        firsts = np.cumsum([0, *(len(shingled) for shingled in chunk[:-1])])
        permuted = hashes[:, None] * a + b
        signatures[start : start + 1024] = np.minimum.reduceat(permuted, firsts, axis=0)
    return signatures


def _mix(hashes: UInt32s) -> UInt32s:
    """Apply MurmurHash3's finalizer, the first step of datasketch's affine32 scheme."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def band_keys(signatures: UInt32s, bands: int, rows: int) -> UInt64s:
    """Hash each band of each signature.

    Args:
        signatures: (n, num_perm) from `minhash`; num_perm is at least bands x rows.
        bands: Number of bands.
        rows: Hash values per band.

    Returns:
        Hashes, (bands, n).
    """
    weights = np.random.default_rng(0).integers(1, 2**63, rows, np.uint64) | np.uint64(1)
    keys = np.zeros((bands, len(signatures)), np.uint64)
    for band, row in np.ndindex(bands, rows):
        keys[band] += signatures[:, band * rows + row] * weights[row]
    return keys


def caption_centres(
    bands: Iterable[UInt64s],
    key_of: Callable[[int], str],
    n: int,
    *,
    min_jaccard: float,
    min_template: int | None = None,
) -> Int64s:
    """Cluster ranked, distinct captions into stars of near duplicates.

    A caption joins the best-ranked centre with which it shares a band, if both have at least
    `min_jaccard` of their shingles in common or differ in one run of words only. A caption without
    such a centre becomes a centre itself. Only centres are indexed, so a thousand variants of one
    sentence need a thousand comparisons instead of a million, and no chains of small changes form.

    Args:
        bands: (n,) for each band of `band_keys`, best-ranked caption first. Captions with
            similarity s share a band with probability 1 - (1 - s^rows)^bands.
        key_of: Returns the caption key at a position; called only for captions that share a band.
        n: Number of captions.
        min_jaccard: Minimum similarity of near duplicates.
        min_template: Minimum number of words before and after the one run of words in which two
            captions of a template differ; None does not compare templates.

    Returns:
        (n,) position of the centre of each caption; its own position for a centre.
    """
    caption, bucket, num_buckets = _shared(bands)
    # A chained hash table of positions in `caption`: `latest` is the last centre put into a bucket,
    # and `before` is the one put into it before a given one.
    latest, before = array("q", [-1]) * num_buckets, array("q", [-1]) * len(caption)
    edges = np.flatnonzero(np.diff(caption, prepend=-1, append=n)).tolist()
    members = array("q", caption.tobytes())
    buckets = array("q", bucket.tobytes())

    @functools.lru_cache(2**16)
    def shingled(position: int) -> frozenset[bytes]:
        return frozenset(shingles(key_of(position)))

    def are_near(position_a: int, position_b: int) -> bool:
        a, b = shingled(position_a), shingled(position_b)
        both = len(a & b)
        if both >= min_jaccard * (len(a) + len(b) - both):
            return True
        return min_template is not None and _share_template(
            key_of(position_a), key_of(position_b), min_template
        )

    centre_of = np.arange(n)
    for start, end in itertools.pairwise(edges):
        near = set()
        for entry in range(start, end):
            indexed = latest[buckets[entry]]
            while indexed >= 0:
                near.add(members[indexed])
                indexed = before[indexed]
        position = members[start]
        for centre in sorted(near):
            if are_near(position, centre):
                centre_of[position] = centre
                break
        else:
            for entry in range(start, end):
                before[entry] = latest[buckets[entry]]
                latest[buckets[entry]] = entry
    return centre_of


def _share_template(key: str, other: str, minimum: int) -> bool:
    """Whether two captions differ in one run of at most a quarter of their words only."""
    a, b = frame(key).split(" "), frame(other).split(" ")
    shorter, longer = sorted((len(a), len(b)))
    minimum = max(minimum, -(-3 * longer // 4))
    if shorter < minimum:
        return False
    head = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    tail = next((i for i in range(shorter - head) if a[-1 - i] != b[-1 - i]), shorter - head)
    return head + tail >= minimum


def _shared(bands: Iterable[UInt64s]) -> tuple[Int64s, Int64s, int]:
    """Find the captions that share a band.

    Returns:
        Caption and bucket of each shared band, by ascending caption; and the number of buckets.
    """
    captions, buckets, num_buckets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for keys in bands:
        order = np.argsort(keys)
        as_before, as_after = np.zeros((2, len(keys)), bool)
        as_before[1:] = as_after[:-1] = keys[order[1:]] == keys[order[:-1]]
        is_shared = as_before | as_after
        starts = ~as_before[is_shared]
        captions.append(order[is_shared])
        buckets.append(num_buckets + np.cumsum(starts) - 1)
        num_buckets += int(starts.sum())
    caption, bucket = np.concatenate(captions), np.concatenate(buckets)
    order = np.argsort(caption, kind="stable")
    return caption[order], bucket[order], num_buckets
