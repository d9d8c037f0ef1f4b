"""Fingerprints of images and captions, and the search for near-identical ones.

Images: the 64-bit perceptual hash of the ImageHash package, an 8 x 8 grid of mean colours that
tells apart what a hash of brightness cannot (a red ball and a blue ball in one place), and an exact
search for all pairs within a Hamming distance.

Captions: MinHash signatures (Broder 1997) with datasketch's permutations, and clusters found
through its LSH index and verified by the true Jaccard similarity.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft
from datasketch import LeanMinHash, MinHash, MinHashLSH
from PIL import Image

__all__ = [
    "GRID",
    "caption_centres",
    "centres",
    "colour_grid",
    "hamming",
    "image_centres",
    "luma",
    "minhash",
    "near_pairs",
    "perceptual_hash",
    "shingles",
]

SIDE = 32
"""Side of the grey square that is hashed: four times the side of the hash."""
GRID = 8
"""Cells of the colour grid along each side."""

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


def luma(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The brightness of an image, (32, 32): what `perceptual_hash` reads."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hash(lumas: npt.NDArray[np.uint8]) -> UInt64s:
    """Hash images by their coarse brightness; bit for bit `imagehash.phash`.

    The lowest 8 x 8 frequencies of the cosine transform, the constant included, each compared
    with their median.

    Args:
        lumas: From `luma`, (n, 32, 32).

    Returns:
        (n,), the first frequency in the highest bit. Images without contrast have meaningless
        hashes.
    """
    rows = scipy.fft.dct(lumas.astype(np.float64), axis=1)[:, :8]
    low = scipy.fft.dct(rows, axis=2)[:, :, :8].reshape(-1, 64)
    bits: npt.NDArray[np.bool_] = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def colour_grid(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The mean colour of each cell of an RGB image, (8, 8, 3)."""
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX))


def hamming(a: UInt64s, b: UInt64s) -> npt.NDArray[np.uint8]:
    """The number of bits in which hashes differ, elementwise."""
    bits: npt.NDArray[np.uint8] = np.bitwise_count(a ^ b)
    return bits


def near_pairs(hashes: UInt64s, max_distance: int) -> Iterator[tuple[Int64s, Int64s]]:
    """Find every pair of 64-bit hashes within a Hamming distance, exactly.

    Multi-index hashing (Norouzi et al., arXiv:1307.2982): cut into `max_distance + s` bands, two
    hashes that near agree on at least s whole bands, so sorting by each choice of s bands brings
    every such pair together. s grows with n, so that few other pairs meet.

    Args:
        hashes: (n,).
        max_distance: From 0 to 16.

    Yields:
        Positions (i, j) of pairs, i < j, in arrays no longer than n; a pair may come more than
        once.
    """
    n = len(hashes)
    if n < 2:
        return
    bits = np.log2(n)
    whole = int(np.clip(np.ceil(max_distance * bits / max(64 - bits, 1)), 1, 3))
    bands = max_distance + whole
    masks = [sum(1 << bit for bit in range(band, 64, bands)) for band in range(bands)]
    for chosen in itertools.combinations(masks, whole):
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys)
        keys, sorted_hashes = keys[order], hashes[order]
        starts = np.arange(n)
        for step in range(1, n):
            starts = starts[starts < n - step]
            starts = starts[keys[starts] == keys[starts + step]]
            if not len(starts):
                break
            ends = starts + step
            near = hamming(sorted_hashes[starts], sorted_hashes[ends]) <= max_distance
            if near.any():
                a, b = order[starts[near]], order[ends[near]]
                yield np.minimum(a, b), np.maximum(a, b)


def image_centres(
    hashes: UInt64s,
    grids: npt.NDArray[np.uint8],
    *,
    max_hamming: int = 6,
    max_colour_distance: int = 32,
) -> Int64s:
    """Put ranked images into stars of near-identical ones.

    Two images are near when their hashes differ in at most `max_hamming` bits and the mean colour
    of every cell of their grids by at most `max_colour_distance` in every channel.

    Args:
        hashes: (n,) from `perceptual_hash`, the best rank first, of images with contrast.
        grids: (n, 8, 8, 3) from `colour_grid`.
        max_hamming: From 0 to 16.
        max_colour_distance: From 0 to 255.

    Returns:
        (n,) the centre of each image; its own position for a centre.
    """
    grids = grids.reshape(len(grids), 3 * GRID**2)

    def alike(a: Int64s, b: Int64s) -> npt.NDArray[np.bool_]:
        chunks = [slice(start, start + 65536) for start in range(0, len(a), 65536)]
        return np.concatenate(
            [_furthest(grids[a[c]], grids[b[c]]) <= max_colour_distance for c in chunks]
            or [np.zeros(0, bool)]
        )

    # A picture that stands a hundred thousand times on the web is first reduced to the best of
    # its equals: comparing all its pairs would be quadratic.
    equal_to, left = np.arange(len(hashes)), np.arange(len(hashes))
    while len(left):
        _, first, group = np.unique(hashes[left], return_index=True, return_inverse=True)
        leader = left[first[group]]
        near = alike(left, leader)
        equal_to[left[near]] = leader[near]
        left = left[~near]

    leaders = np.flatnonzero(equal_to == np.arange(len(hashes)))
    found = [np.zeros(0, np.int64)]
    for i, j in near_pairs(hashes[leaders], max_hamming):
        near = alike(leaders[i], leaders[j])
        found.append(i[near] * len(leaders) + j[near])
    i, j = np.divmod(np.unique(np.concatenate(found)), max(len(leaders), 1))
    of_leaders = leaders[centres(len(leaders), i, j)]
    return of_leaders[np.searchsorted(leaders, equal_to)]


def _furthest(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The largest difference between the rows of two (n, m) arrays, (n,)."""
    furthest: npt.NDArray[np.uint8] = (np.maximum(a, b) - np.minimum(a, b)).max(axis=1)
    return furthest


def centres(n: int, i: Int64s, j: Int64s) -> Int64s:
    """Put n ranked points into stars: each point joins the best-ranked centre it is near to.

    A point is a centre when no centre of a better rank is near it. Unlike connected components,
    every member is near its centre, however long the chain of neighbours.

    Args:
        n: Number of points; the rank of a point is its position, 0 the best.
        i: (m,) the better-ranked point of each near pair.
        j: (m,) the other one.

    Returns:
        (n,) the centre of each point; its own position for a centre.
    """
    is_centre = np.zeros(n, bool)
    is_member = np.zeros(n, bool)
    a, b = i, j
    while len(a):
        waiting = np.zeros(n, bool)
        waiting[b] = True
        is_centre[a[~waiting[a]]] = True
        is_member[b[is_centre[a]]] = True
        undecided = ~(is_centre[a] | is_member[a] | is_member[b])
        a, b = a[undecided], b[undecided]
    of = np.arange(n)
    to_centre = ~is_member[i] & is_member[j]
    of[is_member] = n
    np.minimum.at(of, j[to_centre], i[to_centre])
    return of


def shingles(key: str) -> list[bytes]:
    """The distinct word trigrams of a caption key, in order.

    A caption of fewer than five words is one shingle, so short captions are the same or have
    nothing in common. Trigrams, because bigrams cannot tell "a red ball above a blue kite" from "a
    blue kite above a red ball" with the same words between.
    """
    words = key.split(" ")
    if len(words) < 5:
        return [key.encode()]
    return list({" ".join(words[i : i + 3]).encode(): None for i in range(len(words) - 2)})


def minhash(sets: Sequence[Sequence[bytes]], num_perm: int = 128) -> npt.NDArray[np.uint32]:
    """MinHash signatures; bit for bit those of `datasketch.MinHash(num_perm)`.

    Args:
        sets: n sets of one shingle or more.
        num_perm: Hash values in a signature.

    Returns:
        (n, num_perm).
    """
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


def _mix(hashes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3's finalizer, which datasketch's affine32 scheme begins with."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def caption_centres(
    keys: Sequence[str],
    signatures: npt.NDArray[np.uint32],
    order: Int64s,
    *,
    bands: int = 16,
    rows: int = 8,
    min_jaccard: float = 0.9,
) -> Int64s:
    """Put ranked, distinct captions into stars of near-identical ones.

    A caption is near a centre when LSH proposes it and the Jaccard similarity of their shingles is
    at least `min_jaccard`. Only centres enter the index, so a thousand variants of one sentence
    cost a thousand comparisons, not a million, and a chain of small changes ends at its first
    link.

    Args:
        keys: n distinct caption keys.
        signatures: (n, num_perm) from `minhash`.
        order: (n,) the positions of the captions, the best rank first.
        bands: Bands of the index.
        rows: Hash values in a band; captions of similarity s meet with probability
            1 - (1 - s^rows)^bands.
        min_jaccard: Similarity of near-identical captions.

    Returns:
        (n,) the centre of each caption; its own position for a centre.
    """
    of = np.arange(len(keys))
    # A caption that shares no band with another can be nobody's candidate, and stays out of the
    # index, whose Python objects take some 5 kB a caption.
    candidates = order[_meets_another(signatures, bands, rows)[order]]
    index = MinHashLSH(num_perm=signatures.shape[1], params=(bands, rows))
    shingled: dict[int, set[bytes]] = {}  # of centres, by their place among the candidates
    for place, position in enumerate(candidates.tolist()):
        sketch = LeanMinHash(seed=1, hashvalues=signatures[position], scheme="affine32")
        own = set(shingles(keys[position]))
        for centre in sorted(index.query(sketch)):
            both = len(own & shingled[centre])
            if both >= min_jaccard * (len(own) + len(shingled[centre]) - both):
                of[position] = candidates[centre]
                break
        else:
            index.insert(place, sketch, check_duplication=False)
            shingled[place] = own
    return of


def _meets_another(
    signatures: npt.NDArray[np.uint32], bands: int, rows: int
) -> npt.NDArray[np.bool_]:
    """Whether each signature shares a band with another one, (n,)."""
    meets = np.zeros(len(signatures), bool)
    weights = np.random.default_rng(0).integers(1, 2**63, rows, np.uint64) | np.uint64(1)
    for band in range(bands):
        values = np.zeros(len(signatures), np.uint64)
        for row, weight in enumerate(weights):
            values += signatures[:, band * rows + row] * weight
        order = np.argsort(values)
        equal = values[order[1:]] == values[order[:-1]]
        meets[order[1:][equal]] = True
        meets[order[:-1][equal]] = True
    return meets
