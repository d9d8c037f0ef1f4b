from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.image.augmentation import GREY, OPERATIONS, View

NAMES = (
    *("identity", "autocontrast", "equalize", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
)


def noise(width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(60, 120, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def apply(name: str, image: Image.Image, magnitude: int, sign: int = 1) -> np.ndarray:
    operation = OPERATIONS[NAMES.index(name)]
    return np.asarray(operation(image, magnitude / 10, sign)).astype(int)


def test_there_are_the_ten_operations_that_leave_hues_alone() -> None:
    assert len(OPERATIONS) == len(NAMES)


@pytest.mark.parametrize("name", ["brightness", "sharpness"])
def test_blips_magnitude_leaves_brightness_and_sharpness_as_they_are(name: str) -> None:
    image = noise()
    for sign in (-1, 1):
        assert np.array_equal(apply(name, image, 5, sign), np.asarray(image))
        assert not np.array_equal(apply(name, image, 7, sign), np.asarray(image))


@pytest.mark.parametrize(("magnitude", "factor"), [(0, 0.1), (5, 1.0), (7, 1.36), (10, 1.9)])
def test_brightness_is_multiplied(magnitude: int, factor: float) -> None:
    image = noise()
    expected = np.asarray(image) * factor
    assert np.abs(apply("brightness", image, magnitude) - expected).max() <= 1


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("magnitude", [5, 7])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_translation_is_by_pixels_whatever_the_size(size: int, magnitude: int, sign: int) -> None:
    image = noise(size, size)
    before, after = np.asarray(image), apply("translate_x", image, magnitude, sign)
    if sign > 0:
        assert np.array_equal(after[:, :-magnitude], before[:, magnitude:])
        assert (after[:, -magnitude:] == GREY).all()
    else:
        assert np.array_equal(after[:, magnitude:], before[:, :-magnitude])
    turned = apply("translate_y", image.transpose(Image.Transpose.TRANSPOSE), magnitude, sign)
    assert np.array_equal(turned.transpose(1, 0, 2), after)


@pytest.mark.parametrize(("magnitude", "slope"), [(5, 0.15), (7, 0.21)])
def test_a_shear_moves_a_row_in_proportion_to_its_place(magnitude: int, slope: float) -> None:
    columns = np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (120, 1, 3))
    sheared = apply("shear_x", Image.fromarray(columns), magnitude)
    for row in (0, 40, 80):
        moved = (sheared[row, :60, 0] - columns[row, :60, 0]) / 2
        assert np.abs(moved - slope * row).max() <= 1


@pytest.mark.parametrize(("magnitude", "degrees"), [(5, 15), (7, 21)])
def test_a_rotation_is_about_the_centre(magnitude: int, degrees: int) -> None:
    image = noise()
    expected = image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=GREY)
    assert np.array_equal(apply("rotate", image, magnitude), np.asarray(expected))


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["paper", "crop", "none"]),
    st.integers(0, 10),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_a_view_is_a_square_and_a_function_of_its_seed(
    width: int, height: int, augment: str, magnitude: int, seed: int
) -> None:
    view = View(size=32, augment=augment, magnitude=magnitude)  # type: ignore[arg-type]
    once, again = (view(noise(width, height), random.Random(seed)) for _ in range(2))
    assert once.shape == (32, 32, 3) and once.dtype == np.uint8
    assert np.array_equal(once, again)
