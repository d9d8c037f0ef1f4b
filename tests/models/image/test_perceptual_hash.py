from __future__ import annotations

import io

import imagehash
import numpy as np
import pytest
from helpers.fakes import SHARED, ball, painting
from PIL import Image

from models.image.decode import open_rgb
from models.image.perceptual_hash import (
    colour_distance,
    colour_grid,
    hamming,
    luma,
    perceptual_hash,
)

FLICKR = SHARED / "data/flickr8k/images"


def test_perceptual_hashes_are_those_of_the_imagehash_package() -> None:
    images = [painting(seed) for seed in range(40)] + [ball("red"), Image.new("RGB", (50, 50))]
    expected = [int(str(imagehash.phash(image)), 16) for image in images]
    assert perceptual_hash(np.stack([luma(image) for image in images])).tolist() == expected
    assert perceptual_hash(np.zeros((0, 32, 32), np.uint8)).shape == (0,)
    many = np.random.default_rng(0).integers(0, 256, (1030, 32, 32), np.uint8)
    assert (perceptual_hash(many)[1020:] == perceptual_hash(many[1020:])).all()


def test_reduced_decoding_keeps_perceptual_hashes_near() -> None:
    for seed in range(10):
        file = io.BytesIO()
        painting(seed, (640, 480)).save(file, "JPEG", quality=90)
        whole, reduced = open_rgb(file.getvalue()), open_rgb(file.getvalue(), min_size=(96, 96))
        assert reduced.width < whole.width
        hashes = perceptual_hash(np.stack([luma(whole), luma(reduced)]))
        assert hamming(hashes[:1], hashes[1:]) <= 4


@pytest.mark.skipif(not FLICKR.is_dir(), reason="../shared/data/flickr8k is absent")
def test_reduced_decoding_changes_the_hash_of_a_photograph_by_four_bits_at_most() -> None:
    files = [path.read_bytes() for path in sorted(FLICKR.iterdir())[:200]]
    whole = np.array([int(str(imagehash.phash(open_rgb(file))), 16) for file in files], np.uint64)
    lumas = [luma(open_rgb(file, min_size=(96, 96))) for file in files]
    bits = hamming(whole, perceptual_hash(np.stack(lumas)))
    assert bits.max() <= 4
    assert np.mean(bits == 0) > 0.75 and np.mean(bits <= 2) > 0.99


def test_colours_are_as_far_apart_as_their_furthest_cell() -> None:
    white, spot = np.full((2, 1, 192), 255, np.uint8)
    spot[0, 100] = 5
    assert colour_distance(white, spot).tolist() == [250]
    assert colour_distance(spot, white).tolist() == [250]
    assert colour_distance(white[:0], spot[:0]).tolist() == []
    assert colour_grid(ball("red")).shape == (8, 8, 3)
