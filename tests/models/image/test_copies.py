from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from helpers.fakes import SHARED, painting
from helpers.graphics import COPIES, FAMILIES, cropped, drawn, encoded, marked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.image.copies import are_copies
from models.image.decode import open_rgb
from models.image.perceptual_hash import SIDE, luma

FLICKR = SHARED / "data/flickr8k/images"
KEPT = [kind for kind in COPIES if "2%" not in kind and "3%" not in kind]


def thumbnail(content: bytes) -> npt.NDArray[np.uint8]:
    return luma(open_rgb(content, min_size=(6 * SIDE, 6 * SIDE)))


def thumbnails(images: list[Image.Image]) -> npt.NDArray[np.uint8]:
    return np.stack([thumbnail(encoded(image)) for image in images])


def test_no_pairs_have_no_answer() -> None:
    none = np.zeros((0, SIDE, SIDE), np.uint8)
    assert are_copies(none, none).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(-15, 15), st.floats(0.9, 1.1))
def test_a_picture_that_is_lighter_or_richer_in_contrast_is_a_copy(
    seed: int, offset: int, factor: float
) -> None:
    cells = np.random.default_rng(seed).integers(60, 190, (4, 4), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    other = (smooth.astype(float) * factor + offset).clip(0, 255).astype(np.uint8)
    assert are_copies(smooth[None], other[None]).all()
    assert are_copies(other[None], smooth[None]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 27), st.integers(2, 27))
def test_what_changes_both_ways_is_another_picture(seed: int, x: int, y: int) -> None:
    cells = np.random.default_rng(seed).integers(60, 190, (4, 4), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    other = smooth.copy()
    other[y : y + 3, x : x + 2] = 0
    other[y : y + 3, x + 2 : x + 4] = 255
    assert not are_copies(smooth[None], other[None]).any()
    assert are_copies(smooth[None], other[None], 100).all()


def test_the_answer_of_a_pair_depends_on_no_other() -> None:
    ours = thumbnails([painting(seed, (200, 160)) for seed in range(20)])
    theirs = thumbnails([cropped(painting(seed // 2, (200, 160)), 0.01) for seed in range(20)])
    whole = are_copies(ours, theirs)
    assert whole.tolist() == [
        bool(are_copies(ours[i][None], theirs[i][None])[0]) for i in range(20)
    ]
    assert whole[0] and not whole[2:].any()
    assert (
        are_copies(np.tile(ours, (30, 1, 1)), np.tile(theirs, (30, 1, 1))) == np.tile(whole, 30)
    ).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_graphics_of_a_family_are_copies(family: str) -> None:
    cells = thumbnails(list(drawn(family, 40, seed=3)))
    i, j = np.triu_indices(len(cells), 1)
    assert are_copies(cells[i], cells[j]).mean() <= 0.002


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["quality 30", "half size", "quarter size", "double size"])
def test_graphics_of_other_size_and_quality_are_copies(family: str, kind: str) -> None:
    images = list(drawn(family, 10, seed=4))
    copies = np.stack([thumbnail(COPIES[kind](image)) for image in images])
    assert are_copies(thumbnails(images), copies).all()


@pytest.mark.skipif(not FLICKR.is_dir(), reason="../shared/data/flickr8k is absent")
@pytest.mark.parametrize("kind", KEPT)
def test_copies_of_photographs_are_copies_and_others_are_not(kind: str) -> None:
    photos = [Image.open(path).convert("RGB") for path in sorted(FLICKR.iterdir())[200:240]]
    cells = thumbnails(photos)
    copies = np.stack([thumbnail(COPIES[kind](photo)) for photo in photos])
    assert are_copies(cells, copies).mean() >= 0.97
    assert not are_copies(cells, np.roll(copies, 1, axis=0)).any()


def test_a_mark_in_place_of_another_is_told() -> None:
    photo = painting(1, (400, 300))
    one, other = (marked(photo, where, 0.9, 0.1) for where in ("corner", "centre"))
    cells = thumbnails([photo, one, other])
    assert are_copies(cells[[0, 0]], cells[[1, 2]]).all()
    assert not are_copies(cells[[1]], cells[[2]]).any()


def test_thumbnails_come_from_enough_pixels() -> None:
    file = io.BytesIO()
    next(drawn("pages", 1)).save(file, "JPEG", quality=90)
    reduced = open_rgb(file.getvalue(), min_size=(6 * SIDE, 6 * SIDE))
    assert reduced.width >= 6 * SIDE
