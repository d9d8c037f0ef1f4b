"""Near-identical captions: MinHash signatures, their bands, and stars of what is verified.

Signatures (Broder 1997) use the permutations of datasketch and are its own bit for bit. Its index
keeps some 5 kB of Python objects a caption; here the bands are sorted instead, and only what
shares one is looked at.
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
"""Words beside its numbers that make a caption the frame of others with other numbers."""

UInt32s = npt.NDArray[np.uint32]
UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


def frame(key: str) -> str:
    """A caption key with its numbers masked, where six words or more are left.

    "Photo number 17 of our summer fair" is a template that a site fills in, while a number is half
    of what "1963 yearbook" says.
    """
    words = key.split(" ")
    masked = ["#" if word.isdecimal() else word for word in words]
    if len(masked) - masked.count("#") < FRAME_WORDS:
        return key
    return " ".join(masked)


def shingles(key: str) -> list[bytes]:
    """The distinct word trigrams of the frame of a caption key, in order.

    A caption of fewer than five words is one shingle, so short captions are the same or have
    nothing in common. Trigrams, because bigrams cannot tell "a red ball above a blue kite" from "a
    blue kite above a red ball" with the same words between.
    """
    words = frame(key).split(" ")
    if len(words) < 5:
        return [key.encode()]
    return list({" ".join(words[i : i + 3]).encode(): None for i in range(len(words) - 2)})


def minhash(sets: Sequence[Sequence[bytes]], num_perm: int = 128) -> UInt32s:
    """MinHash signatures; bit for bit those of `datasketch.MinHash(num_perm)`.

    Args:
        sets: n sets of one shingle or more.
        num_perm: Hash values in a signature.

    Returns:
        (n, num_perm).
    """
    from datasketch import MinHash  # a driver never hashes, and this imports half of scipy

    a, b = MinHash(num_perm).permutations
    signatures = np.empty((len(sets), num_perm), np.uint32)
    for start in range(0, len(sets), 1024):  # 1024 captions make some 5 MB of permuted hashes
        chunk = sets[start : start + 1024]
        digests = b"".join(hashlib.sha1(one).digest()[:4] for shingled in chunk for one in shingled)
        hashes = _mix(np.frombuffer(digests, "<u4").astype(np.uint32))
        firsts = np.cumsum([0, *(len(shingled) for shingled in chunk[:-1])])
        permuted = hashes[:, None] * a + b
        signatures[start : start + 1024] = np.minimum.reduceat(permuted, firsts, axis=0)
    return signatures


def _mix(hashes: UInt32s) -> UInt32s:
    """MurmurHash3's finalizer, which datasketch's affine32 scheme begins with."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def band_keys(signatures: UInt32s, bands: int, rows: int) -> UInt64s:
    """A hash of each band of each signature, (bands, n).

    Args:
        signatures: (n, num_perm) from `minhash`; num_perm is at least bands x rows.
        bands: Bands to cut them into.
        rows: Hash values in a band.
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
    """Put ranked, distinct captions into stars of near-identical ones.

    A caption joins the best-ranked centre with which it shares a band, and either at least
    `min_jaccard` of all shingles or all words but one run of them; without one it is a centre. Only
    centres enter the index, so a thousand variants of one sentence cost a thousand comparisons, not
    a million, and a chain of small changes ends at its first link.

    Args:
        bands: (n,) for each band of `band_keys`, the best-ranked caption first. Captions of
            similarity s share one with probability 1 - (1 - s^rows)^bands.
        key_of: The caption key at a position; asked for those that share a band alone.
        n: Number of captions.
        min_jaccard: Similarity of near-identical captions.
        min_template: Words before and after one run of a few words, in which alone two captions of
            a template may differ; none where no such captions count as one.

    Returns:
        (n,) the centre of each caption; its own position for a centre.
    """
    caption, bucket, num_buckets = _shared(bands)
    # A chained hash table: `latest` of a bucket is the last centre put into it, as a place in
    # `caption`, and `before` the one put in earlier.
    latest, before = array("q", [-1]) * num_buckets, array("q", [-1]) * len(caption)
    edges = np.flatnonzero(np.diff(caption, prepend=-1, append=n)).tolist()
    members = array("q", caption.tobytes())
    buckets = array("q", bucket.tobytes())

    @functools.lru_cache(2**16)
    def shingled(position: int) -> frozenset[bytes]:
        return frozenset(shingles(key_of(position)))

    def are_one(one: int, other: int) -> bool:
        a, b = shingled(one), shingled(other)
        both = len(a & b)
        if both >= min_jaccard * (len(a) + len(b) - both):
            return True
        return min_template is not None and _are_filled(key_of(one), key_of(other), min_template)

    of = np.arange(n)
    for start, end in itertools.pairwise(edges):
        near = set()
        for place in range(start, end):
            other = latest[buckets[place]]
            while other >= 0:
                near.add(members[other])
                other = before[other]
        position = members[start]
        for centre in sorted(near):
            if are_one(position, centre):
                of[position] = centre
                break
        else:
            for place in range(start, end):
                before[place] = latest[buckets[place]]
                latest[buckets[place]] = place
    return of


def _are_filled(key: str, other: str, least: int) -> bool:
    """Whether two captions share all words but one run of at most a quarter of them."""
    a, b = frame(key).split(" "), frame(other).split(" ")
    shorter, longer = sorted((len(a), len(b)))
    least = max(least, -(-3 * longer // 4))
    if shorter < least:
        return False
    head = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    tail = next((i for i in range(shorter - head) if a[-1 - i] != b[-1 - i]), shorter - head)
    return head + tail >= least


def _shared(bands: Iterable[UInt64s]) -> tuple[Int64s, Int64s, int]:
    """The captions that share a band, each as often as it does, ascending.

    Returns:
        The caption and the bucket of each, and the number of buckets.
    """
    found, buckets, num_buckets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for keys in bands:
        order = np.argsort(keys)
        as_before, as_after = np.zeros((2, len(keys)), bool)
        as_before[1:] = as_after[:-1] = keys[order[1:]] == keys[order[:-1]]
        is_shared = as_before | as_after
        starts = ~as_before[is_shared]
        found.append(order[is_shared])
        buckets.append(num_buckets + np.cumsum(starts) - 1)
        num_buckets += int(starts.sum())
    caption, bucket = np.concatenate(found), np.concatenate(buckets)
    order = np.argsort(caption, kind="stable")
    return caption[order], bucket[order], num_buckets
