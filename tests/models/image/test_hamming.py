from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from helpers.fakes import SHARED, ball, painting
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.image.decode import open_rgb
from models.image.hamming import centres, image_centres, near_between, near_pairs
from models.image.perceptual_hash import (
    colour_distance,
    colour_grid,
    hamming,
    luma,
    perceptual_hash,
)

FLICKR = SHARED / "data/flickr8k/images"

Change = tuple[int, list[int]]
"""Which hash, and the bits of it to flip."""


def recompressed(image: Image.Image, scale: float, quality: int) -> Image.Image:
    file = io.BytesIO()
    size = round(image.width * scale), round(image.height * scale)
    image.resize(size).save(file, "JPEG", quality=quality)
    return open_rgb(file.getvalue(), min_size=(96, 96))


def fingerprints(
    images: list[Image.Image],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    return (
        perceptual_hash(np.stack([luma(image) for image in images])),
        np.stack([colour_grid(image) for image in images]),
    )


def hashes_of(most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 2**64 - 1), max_size=most)


def changes_of(most: int) -> st.SearchStrategy[list[Change]]:
    bits = st.lists(st.integers(0, 63), max_size=8)
    return st.lists(st.tuples(st.integers(0, 2**31), bits), max_size=most)


def changed(hashes: list[int], changes: list[Change]) -> Iterator[int]:
    """For each change the hash that it picks, with its bits flipped."""
    for pick, flips in changes:
        value = hashes[pick % len(hashes)] if hashes else 0
        for bit in flips:
            value ^= 1 << bit
        yield value


@given(st.lists(st.integers(0, 2**16 - 1), max_size=40), st.integers(0, 8), st.integers(1, 100))
def test_the_parts_of_a_search_find_what_the_whole_finds(values, most, parts):
    hashes = np.array(values, np.uint64)

    def pairs(part: int, of: int) -> set[tuple[int, int]]:
        found = near_pairs(hashes, most, part, of)
        return {pair for i, j in found for pair in zip(i.tolist(), j.tolist(), strict=True)}

    assert set().union(*(pairs(part, parts) for part in range(parts))) == pairs(0, 1)


@given(
    hashes_of(30),
    changes_of(30),
    st.integers(0, 8),
)
def test_near_pairs_are_all_the_pairs_within_the_distance(
    far: list[int], close: list[Change], max_distance: int
) -> None:
    values = list(far)
    for value in changed(values, close):
        values.append(value)
    hashes = np.array(values, np.uint64)
    found = {
        (int(i), int(j))
        for firsts, seconds in near_pairs(hashes, max_distance)
        for i, j in zip(firsts, seconds, strict=True)
    }
    expected = {
        (i, j)
        for j in range(len(values))
        for i in range(j)
        if (values[i] ^ values[j]).bit_count() <= max_distance
    }
    assert found == expected


@given(
    hashes_of(20),
    changes_of(20),
    st.integers(0, 8),
)
def test_near_between_finds_all_the_pairs_of_two_sets(
    hashes: list[int], close: list[Change], max_distance: int
) -> None:
    others = list(changed(hashes, close))
    pairs = near_between(np.array(hashes, np.uint64), np.array(others, np.uint64), max_distance)
    found = {(int(i), int(j)) for a, b in pairs for i, j in zip(a, b, strict=True)}
    assert found == {
        (i, j)
        for i, one in enumerate(hashes)
        for j, other in enumerate(others)
        if (one ^ other).bit_count() <= max_distance
    }


def test_the_search_is_exact_among_many() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 3000, np.uint64, endpoint=False)
    for _ in range(5):
        hashes = np.append(
            hashes, hashes[:600] ^ (np.uint64(1) << rng.integers(0, 64, 600).astype("u8"))
        )
    for distance in (2, 4, 6):
        found = {(a, b) for i, j in near_pairs(hashes, distance) for a, b in zip(i, j, strict=True)}
        every = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
        assert len(found) == (int(every.sum()) - len(hashes)) // 2
        assert all(every[i, j] and i < j for i, j in found)


@given(st.integers(1, 25), st.sets(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=80))
def test_stars_are_those_of_the_plain_loop(n: int, pairs: set[tuple[int, int]]) -> None:
    edges = sorted({(min(p), max(p)) for p in pairs if p[0] != p[1] and max(p) < n})
    expected: list[int] = []
    for j in range(n):
        near = [i for i in range(j) if (i, j) in edges and expected[i] == i]
        expected.append(near[0] if near else j)
    i = np.array([a for a, _ in edges], np.int64)
    j_ = np.array([b for _, b in edges], np.int64)
    assert centres(n, i, j_).tolist() == expected


def stars_of(
    hashes: npt.NDArray[np.uint64],
    grids: npt.NDArray[np.uint8],
    *,
    max_hamming: int = 6,
    max_colour_distance: int = 32,
) -> list[int]:
    flat = grids.reshape(len(grids), -1)

    def near(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return colour_distance(flat[a], flat[b]) <= max_colour_distance

    return image_centres(hashes, near, max_hamming=max_hamming).tolist()


def test_copies_of_other_size_and_quality_are_one_image() -> None:
    images = [painting(seed) for seed in range(30)]
    copies = [recompressed(image, 0.7, 70) for image in images]
    assert stars_of(*fingerprints(images + copies)) == [*range(30), *range(30)]


def test_colour_tells_apart_what_brightness_cannot() -> None:
    red, blue = ball("#c03030"), ball("#305fc0")
    hashes, grids = fingerprints([red, blue, recompressed(red, 1.5, 80)])
    assert hamming(hashes[:1], hashes[1:2]) <= 6
    assert stars_of(hashes, grids) == [0, 1, 0]
    assert stars_of(hashes, grids, max_colour_distance=255) == [0, 0, 0]


def test_a_chain_of_near_images_does_not_join_its_ends() -> None:
    grids = np.zeros((4, 8, 8, 3), np.uint8)
    hashes = np.array([0, 0b1111, 0b11111111, 0b111111111111], np.uint64)
    assert stars_of(hashes, grids, max_hamming=4) == [0, 0, 2, 2]


def test_equal_hashes_of_many_colours_stay_apart() -> None:
    grids = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 40)[:, None, None, None]
    grids = np.broadcast_to(grids, (200, 8, 8, 3)).copy()
    assert len(set(stars_of(np.zeros(200, np.uint64), grids))) == 5


@pytest.mark.skipif(not FLICKR.is_dir(), reason="../shared/data/flickr8k is absent")
def test_resized_photographs_are_found_and_different_ones_are_not_merged() -> None:
    photos = [open_rgb(path.read_bytes()) for path in sorted(FLICKR.iterdir())[:120]]
    photos = [photo.resize((photo.width // 2, photo.height // 2)) for photo in photos]
    copies = [
        recompressed(photo, 0.55 + 0.4 * i / 120, (60, 75, 85)[i % 3])
        for i, photo in enumerate(photos)
    ]
    assert stars_of(*fingerprints(photos + copies)) == [*range(120), *range(120)]
