"""Finds all pairs of 64-bit hashes within a Hamming distance, and clusters near points into stars.

Multi-index hashing (Norouzi et al., arXiv:1307.2982) on sorted arrays, which needs no index and
memory proportional to the number of hashes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from models.image.perceptual_hash import hamming

__all__ = ["Near", "centres", "image_centres", "near_between", "near_pairs"]

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Near = Callable[[Int64s, Int64s], npt.NDArray[np.bool_]]
"""A function that decides, for pairs of positions, whether they are near beyond their hashes."""

HIGH = np.uint64(0xFFFFFFFF00000000)
ROUNDS = 16
"""Number of rounds in which images with equal hashes are compared with the best remaining one."""

WINDOW = 64
"""Number of lighter images, and of darker ones, with one hash that an image is compared with."""

PAIRS = 1 << 20
"""Number of pairs compared at once."""

MIX = np.uint64(0x9E3779B97F4A7C15)  # spreads the masked bits over the upper half


def near_pairs(
    hashes: UInt64s, max_distance: int, part: int = 0, parts: int = 1
) -> Iterator[tuple[Int64s, Int64s]]:
    """Find every pair of hashes within a Hamming distance; the search is exact.

    Hashes are split into `max_distance + s` bands. Two near hashes agree on at least s bands, so
    sorting by each choice of s bands brings every such pair together. s grows with n, to limit the
    number of other pairs.

    Args:
        hashes: (n,), fewer than 2^32.
        max_distance: From 0 to 16.
        part: The part 0, 1, ... of the search to do.
        parts: Number of parts; every pair occurs in at least one of them.

    Yields:
        Positions (i, j) of pairs, i < j, in arrays no longer than n; a pair may be repeated.
    """
    n = len(hashes)
    for mask in _masks(n, max_distance)[part::parts]:
        keys, order = _sorted(hashes, mask)
        ordered = hashes[order]
        starts = np.flatnonzero(keys[1:] == keys[:-1])
        for step in itertools.count(1):
            if not len(starts):
                break
            near = starts[hamming(ordered[starts], ordered[starts + step]) <= max_distance]
            if len(near):
                a, b = order[near], order[near + step]
                yield np.minimum(a, b), np.maximum(a, b)
            starts = starts[starts < n - step - 1]
            starts = starts[keys[starts] == keys[starts + step + 1]]


def near_between(
    hashes: UInt64s, others: UInt64s, max_distance: int
) -> Iterator[tuple[Int64s, Int64s]]:
    """Find every pair from two sets of hashes within a Hamming distance; the search is exact.

    Args:
        hashes: (n,).
        others: (m,), fewer than 2^32.
        max_distance: From 0 to 16.

    Yields:
        Positions (i, j) of hashes[i] and others[j], in arrays no longer than n; a pair may be
        repeated.
    """
    for mask in _masks(len(others), max_distance):
        keys, order = _sorted(others, mask)
        hash_keys = _keys(hashes, mask)
        position = np.searchsorted(keys, hash_keys)
        i = np.arange(len(hashes))
        while len(i):
            i = i[position[i] < len(keys)]
            i = i[keys[position[i]] == hash_keys[i]]
            j = order[position[i]]
            near = hamming(hashes[i], others[j]) <= max_distance
            if near.any():
                yield i[near], j[near]
            position[i] += 1


def _masks(n: int, max_distance: int) -> list[np.uint64]:
    """Return the choices of bands to sort n hashes by, as bit masks."""
    if not n:
        return []
    bits = np.log2(n)
    num_equal = int(np.clip(np.ceil(max_distance * bits / max(64 - bits, 1)), 1, 3))
    bands = max_distance + num_equal
    masks = [sum(1 << bit for bit in range(band, 64, bands)) for band in range(bands)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(masks, num_equal)]


def _keys(hashes: UInt64s, mask: np.uint64) -> UInt64s:
    """Return keys, in the upper 32 bits, that are equal if the masked hashes are."""
    return ((hashes & mask) * MIX) & HIGH


def _sorted(hashes: UInt64s, mask: np.uint64) -> tuple[UInt64s, Int64s]:
    """Return the keys of hashes in ascending order, and the positions of the hashes."""
    # Key and position are packed into one integer, since sorting values is faster than argsort.
    packed = _keys(hashes, mask) | np.arange(len(hashes), dtype=np.uint64)
    packed.sort()
    return packed & HIGH, (packed & ~HIGH).astype(np.int64)


def image_centres(
    hashes: UInt64s, near: Near, *, max_hamming: int, lightness: Int64s | None = None
) -> Int64s:
    """Cluster ranked images into stars of near copies.

    Two images are near if their hashes differ in at most `max_hamming` bits and `near` agrees. If
    more than a few hundred images share a hash, such as the products of one shop, each is compared
    only with those of similar lightness, as copies are.

    Args:
        hashes: (n,) from `perceptual_hash`, best rank first, of images with contrast.
        near: A further condition for pairs of images.
        max_hamming: From 0 to 16.
        lightness: (n,), from 0 to 2^20 - 1; None treats all as equally light.

    Returns:
        (n,) position of the centre of each image; its own position for a centre.
    """
    # An image that occurs a hundred thousand times is first reduced to its best copy, since
    # comparing all pairs would be quadratic.
    equal_to, left = np.arange(len(hashes)), np.arange(len(hashes))
    for _ in range(ROUNDS):
        _, first, group = np.unique(hashes[left], return_index=True, return_inverse=True)
        leader = left[first[group]]
        left, leader = left[left != leader], leader[left != leader]
        if not len(left):
            break
        is_equal = near(left, leader)
        equal_to[left[is_equal]] = leader[is_equal]
        left = left[~is_equal]

    leaders = np.flatnonzero(equal_to == np.arange(len(hashes)))
    light = np.zeros(len(leaders), np.int64) if lightness is None else lightness[leaders]
    pairs = [np.zeros(0, np.int64)]
    for a, b in _candidates(hashes[leaders], light, max_hamming):
        i, j = np.minimum(a, b), np.maximum(a, b)
        is_near = near(leaders[i], leaders[j])
        pairs.append(i[is_near] * len(leaders) + j[is_near])
    i, j = np.divmod(np.unique(np.concatenate(pairs)), max(len(leaders), 1))
    of_leaders = leaders[centres(len(leaders), i, j)]
    return of_leaders[np.searchsorted(leaders, equal_to)]


def _candidates(
    hashes: UInt64s, lightness: Int64s, max_hamming: int
) -> Iterator[tuple[Int64s, Int64s]]:
    """Yield pairs of positions of near hashes, each once, limited to similar lightness."""
    unique, group = np.unique(hashes, return_inverse=True)
    keys = (group << 20) | lightness
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ends = np.cumsum(np.bincount(group, minlength=len(unique)))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    near = [np.stack([np.arange(len(unique))] * 2, axis=1)]
    near += [np.stack(pair, axis=1) for pair in near_pairs(unique, max_hamming)]
    groups = np.unique(np.concatenate(near), axis=0)
    # Each row of the first group is compared with a window of the second.
    rows = np.repeat(np.arange(len(groups)), (ends - starts)[groups[:, 0]])
    position = np.arange(len(rows)) - np.searchsorted(rows, rows) + starts[groups[rows, 0]]
    other = groups[rows, 1]
    middle = np.searchsorted(keys, (other << 20) | (keys[position] & ((1 << 20) - 1)))
    low = np.maximum(middle - WINDOW, starts[other])
    low = np.where(groups[rows, 0] == other, position + 1, low)
    high = np.minimum(np.maximum(middle, low) + WINDOW, ends[other])
    num_pairs = np.maximum(high - low, 0)
    total = np.cumsum(num_pairs)
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(total // PAIRS)) + 1):
        number = num_pairs[part]
        first = np.repeat(low[part], number)
        offset = np.arange(len(first)) - np.repeat(np.cumsum(number) - number, number)
        if len(first):
            yield order[np.repeat(position[part], number)], order[first + offset]


def centres(n: int, i: Int64s, j: Int64s) -> Int64s:
    """Cluster n ranked points into stars: each point joins the best-ranked centre near it.

    A point is a centre if no better-ranked centre is near it. Unlike in connected components, every
    member is near its centre, even in a long chain of neighbours.

    Args:
        n: Number of points; the rank of a point is its position, and 0 is the best.
        i: (m,) the better-ranked point of each near pair.
        j: (m,) the other point of each near pair.

    Returns:
        (n,) position of the centre of each point; its own position for a centre.
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
    centre_of = np.arange(n)
    to_centre = ~is_member[i] & is_member[j]
    centre_of[is_member] = n
    np.minimum.at(centre_of, j[to_centre], i[to_centre])
    return centre_of
