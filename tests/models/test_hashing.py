from __future__ import annotations

import io
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from models.hashing import (
    caption_centres,
    centres,
    colour_grid,
    hamming,
    image_centres,
    luma,
    minhash,
    near_pairs,
    perceptual_hash,
    shingles,
)
from models.images import open_rgb
from models.text import caption_key

FLICKR = Path(__file__).resolve().parents[2] / "../shared/data/flickr8k/images"


def painting(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth random colours: no two seeds look alike."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def ball(colour: str, x: int = 40) -> Image.Image:
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((x, 30, x + 24, 54), colour)
    return image


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


def caption_stars(captions: list[str], min_jaccard: float = 0.9) -> list[int]:
    keys = [caption_key(caption) for caption in captions]
    signatures = minhash([shingles(key) for key in keys])
    order = np.arange(len(keys))
    return caption_centres(keys, signatures, order, min_jaccard=min_jaccard).tolist()


def test_perceptual_hashes_are_those_of_the_imagehash_package() -> None:
    images = [painting(seed) for seed in range(40)] + [ball("red"), Image.new("RGB", (50, 50))]
    expected = [int(str(imagehash.phash(image)), 16) for image in images]
    assert perceptual_hash(np.stack([luma(image) for image in images])).tolist() == expected
    assert perceptual_hash(np.zeros((0, 32, 32), np.uint8)).shape == (0,)


def test_reduced_decoding_keeps_perceptual_hashes_near() -> None:
    for seed in range(10):
        file = io.BytesIO()
        painting(seed, (640, 480)).save(file, "JPEG", quality=90)
        whole, reduced = open_rgb(file.getvalue()), open_rgb(file.getvalue(), min_size=(96, 96))
        assert reduced.width < whole.width
        hashes, _ = fingerprints([whole, reduced])
        assert hamming(hashes[:1], hashes[1:]) <= 4


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.lists(
        st.tuples(st.integers(0, 2**31), st.lists(st.integers(0, 63), max_size=8)), max_size=30
    ),
    st.integers(0, 8),
)
def test_near_pairs_are_all_the_pairs_within_the_distance(
    far: list[int], close: list[tuple[int, list[int]]], max_distance: int
) -> None:
    values = list(far)
    for pick, flips in close:
        value = values[pick % len(values)] if values else 0
        for bit in flips:
            value ^= 1 << bit
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


def test_copies_of_other_size_and_quality_are_one_image() -> None:
    images = [painting(seed) for seed in range(30)]
    copies = [recompressed(image, 0.7, 70) for image in images]
    stars = image_centres(*fingerprints(images + copies))
    assert stars.tolist() == [*range(30), *range(30)]


def test_colour_tells_apart_what_brightness_cannot() -> None:
    red, blue = ball("#c03030"), ball("#305fc0")
    hashes, grids = fingerprints([red, blue, recompressed(red, 1.5, 80)])
    assert hamming(hashes[:1], hashes[1:2]) <= 6
    assert image_centres(hashes, grids).tolist() == [0, 1, 0]
    assert image_centres(hashes, grids, max_colour_distance=255).tolist() == [0, 0, 0]


def test_a_chain_of_near_images_does_not_join_its_ends() -> None:
    grids = np.zeros((4, 8, 8, 3), np.uint8)
    hashes = np.array([0, 0b1111, 0b11111111, 0b111111111111], np.uint64)
    assert image_centres(hashes, grids, max_hamming=4).tolist() == [0, 0, 2, 2]


def test_equal_hashes_of_many_colours_stay_apart() -> None:
    grids = np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 40)[:, None, None, None]
    grids = np.broadcast_to(grids, (200, 8, 8, 3)).copy()
    assert len(set(image_centres(np.zeros(200, np.uint64), grids).tolist())) == 5


@settings(max_examples=20)
@given(st.lists(st.lists(st.text(max_size=8), min_size=1, max_size=9), min_size=1, max_size=20))
def test_minhashes_are_those_of_datasketch(sets: list[list[str]]) -> None:
    encoded = [[text.encode() for text in one] for one in sets]
    for row, one in zip(minhash(encoded), encoded, strict=True):
        expected = MinHash(128)
        expected.update_batch(one)
        assert row.tolist() == expected.hashvalues.tolist()


def test_no_captions_have_no_signatures() -> None:
    assert minhash([]).shape == (0, 128)
    assert caption_stars([]) == []


def test_a_signature_does_not_depend_on_its_neighbours() -> None:
    sets = [[f"{i} {j}".encode() for j in range(i % 7 + 1)] for i in range(3000)]
    assert (minhash(sets)[1500:1510] == minhash(sets[1500:1510])).all()


def test_short_captions_are_one_only_when_they_are_equal() -> None:
    captions = ["dog", "dogs", "red dog", "dog red", "a red dog", "the red dog", "a red dog runs"]
    assert caption_stars([*captions, "A red DOG!", "Dog."]) == [0, 1, 2, 3, 4, 5, 6, 4, 0]


def test_the_sentences_of_a_small_grammar_stay_apart() -> None:
    captions = [
        f"a {size} {first} ball above a {other} {second} kite on a green field"
        for size in ("small", "big")
        for other in ("small", "big")
        for first in ("red", "blue", "white")
        for second in ("red", "blue", "white")
    ]
    assert caption_stars(captions) == list(range(len(captions)))
    swapped = [
        "a red ball above a blue ball on the beach",
        "a blue ball above a red ball on the beach",
    ]
    assert caption_stars(swapped) == [0, 1]


def test_long_captions_that_differ_in_a_word_are_one() -> None:
    words = [f"word{i}" for i in range(60)]
    changed = [*words[:30], "other", *words[31:]]
    assert caption_stars(
        [" ".join(words), " ".join(changed), "something else entirely, and longer"]
    ) == [
        0,
        0,
        2,
    ]


def test_a_chain_of_near_captions_does_not_join_its_ends() -> None:
    words = [f"w{i}" for i in range(200)]
    captions = [" ".join(["x"] * step + words[step:]) for step in range(0, 40, 4)]
    stars = caption_stars(captions)
    for position, centre in enumerate(stars):
        a, b = set(shingles(captions[position])), set(shingles(captions[centre]))
        assert len(a & b) / len(a | b) >= 0.9
    assert stars[-1] != 0


def test_rank_decides_which_caption_is_the_centre() -> None:
    words = [f"word{i}" for i in range(60)]
    keys = [" ".join(words), " ".join([*words[:-1], "end"])]
    signatures = minhash([shingles(key) for key in keys])
    assert caption_centres(keys, signatures, np.array([0, 1])).tolist() == [0, 0]
    assert caption_centres(keys, signatures, np.array([1, 0])).tolist() == [1, 1]


@pytest.mark.skipif(not FLICKR.is_dir(), reason="../shared/data/flickr8k is absent")
def test_resized_photographs_are_found_and_different_ones_are_not_merged() -> None:
    photos = [open_rgb(path.read_bytes()) for path in sorted(FLICKR.iterdir())[:120]]
    photos = [photo.resize((photo.width // 2, photo.height // 2)) for photo in photos]
    copies = [
        recompressed(photo, 0.55 + 0.4 * i / 120, (60, 75, 85)[i % 3])
        for i, photo in enumerate(photos)
    ]
    stars = image_centres(*fingerprints(photos + copies))
    assert stars.tolist() == [*range(120), *range(120)]
