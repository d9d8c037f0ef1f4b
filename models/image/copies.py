"""Decides whether two images with similar hashes are copies, by comparing thumbnails cell by cell.

A perceptual hash captures only the layout of an image, so different prints on the same T-shirt, or
charts with the same axes, have the same hash. A copy with another size or quality differs in each
cell by no more than the edges around it explain. A watermark makes many cells brighter or many
cells darker, but not both, while a different print does both. A crop agrees after it is aligned
(Lucas and Kanade, IJCAI 1981).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["are_copies"]

UInt8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CHUNK = 256
"""Pairs compared at once, about 30 MB."""

NOISE, EDGE = 4.0, 0.12
"""Allowed difference of a cell in a copy: levels of 255, plus a share of the steepest slope near
it."""

FLAT_NOISE, FLAT_EDGE = 3.0, 0.06
"""The same for an overlay on an image with few slopes, whose copies have little noise."""

CROP_NOISE, CROP_EDGE = 6.0, 0.3
"""The same for an aligned crop, whose cells do not match exactly."""

BUSY, BUSY_SHARE = 1.0, 0.65
"""Minimum slope of a cell with detail, and minimum share of such cells in a photograph."""

STRAY_CELLS = 1
"""Maximum number of differing cells in a copy with another size or quality."""

MAX_COVERED = 0.25
"""Maximum share of cells that an overlay changes."""

MAX_OPPOSITE = 0.02
"""Maximum change by an overlay in the opposite direction, as a share of the main change."""

STEEP, MOVED, MOVED_SHARE = 8.0, 0.15, 0.3
"""Minimum slope at which a shift is visible, minimum shift in cells, and minimum share of such
cells, for two images to be compared as crops."""

CROP_STRAY = 0.006
"""Maximum share of differing cells in an aligned crop."""

MAX_PREDICTED = 0.75
"""Maximum share of the difference that the first alignment step may be predicted to leave."""

CROP_GAIN = 0.5
"""Maximum share of the difference that alignment may leave."""

MAX_SHIFT, MAX_STRETCH = 0.05, 0.08
"""Maximum shift and stretch of a crop, as a share of the side."""

FACTORS, OFFSETS = (0.8, 1.25), (-30.0, 30.0)
"""Allowed changes of contrast (factor) and brightness (offset, in levels of 255) in a copy."""


def are_copies(ours: UInt8s, theirs: UInt8s, tolerance: float = 1.0) -> Bools:
    """Whether images are copies: resized, recompressed, brightened, slightly cropped or marked.

    Args:
        ours: Thumbnails from `perceptual_hash.luma`, (n, 32, 32).
        theirs: The thumbnails to compare them with, (n, 32, 32).
        tolerance: Factor on the allowed difference of cells. With 0 only equal thumbnails are
            copies; with a large value all are.

    Returns:
        bool, (n,).
    """
    is_copy: Bools = (ours == theirs).all(axis=(1, 2))
    unequal = np.flatnonzero(~is_copy)
    for start in range(0, len(unequal), CHUNK):
        chunk = unequal[start : start + CHUNK]
        a = ours[chunk].astype(np.float32)
        b = _match_brightness(a, theirs[chunk].astype(np.float32))
        slopes = _slope(a), _slope(b)
        is_copy[chunk] = _is_same_or_marked(a, b, slopes, tolerance)
        remaining = np.flatnonzero(~is_copy[chunk] & _may_have_moved(a, b, slopes))
        if len(remaining):
            is_copy[chunk[remaining]] = _is_cropped(a[remaining], b[remaining], tolerance)
    return is_copy


def _is_same_or_marked(
    a: Floats, b: Floats, slopes: tuple[Floats, Floats], tolerance: float
) -> Bools:
    """Whether two images are equal up to noise, or one has an overlay that is lighter or darker."""
    steepest = _steepest(slopes)
    up, down = _beyond(a, b, steepest, tolerance * NOISE, tolerance * EDGE)
    changed = ((up > 0) | (down > 0)).sum(axis=(1, 2))
    is_same: Bools = changed <= STRAY_CELLS
    sums = up.sum(axis=(1, 2)), down.sum(axis=(1, 2))
    is_one_way = np.minimum(*sums) <= MAX_OPPOSITE * np.maximum(*sums)
    remaining = np.flatnonzero(~is_same & is_one_way & (changed <= MAX_COVERED * up[0].size))
    if len(remaining):
        # Without much detail, a change counts as an overlay only if all cells change one way.
        up, down = _beyond(
            a[remaining],
            b[remaining],
            steepest[remaining],
            tolerance * FLAT_NOISE,
            tolerance * FLAT_EDGE,
        )
        is_pure = np.minimum((up > 0).sum(axis=(1, 2)), (down > 0).sum(axis=(1, 2))) == 0
        lower_slope = np.minimum(slopes[0][remaining], slopes[1][remaining])[:, 1:-1, 1:-1]
        is_same[remaining] = is_pure | ((lower_slope > BUSY).mean(axis=(1, 2)) >= BUSY_SHARE)
    return is_same


def _may_have_moved(a: Floats, b: Floats, slopes: tuple[Floats, Floats]) -> Bools:
    """Whether enough steep cells differ for one image to be a crop of the other."""
    is_steep = np.maximum(*slopes) > STEEP
    differs = is_steep & (np.abs(a - b) > STEEP * MOVED)
    may: Bools = differs.sum(axis=(1, 2)) >= MOVED_SHARE * is_steep.sum(axis=(1, 2))
    return may


def _is_cropped(a: Floats, b: Floats, tolerance: float) -> Bools:
    """Whether two images agree after the second is aligned with the first.

    Alignment is iteratively reweighted least squares (Gauss-Newton) over shift and stretch in both
    directions, and factor and offset of brightness. The weights reduce the influence of overlays.
    If the first step predicts no gain, the images are not crops of each other.
    """
    is_cropped = np.zeros(len(a), bool)
    q = np.tile([0.0, 0, 0, 0, 1, 0], (len(a), 1))
    step, before, predicted = _step(a, b, q)
    remaining = np.flatnonzero(predicted <= MAX_PREDICTED * before)
    if not len(remaining):
        return is_cropped
    a, b, q, before = (
        a[remaining],
        b[remaining],
        _apply_step(q[remaining], step[remaining]),
        before[remaining],
    )
    for _ in range(7):
        q = _apply_step(q, _step(a, b, q)[0])
    moved = _blurred(_align(b, q))
    a = _blurred(a)
    steepest = _steepest((_slope(a), _slope(moved)))
    up, down = _beyond(a, moved, steepest, tolerance * CROP_NOISE, tolerance * CROP_EDGE)
    strays = ((up > 0) | (down > 0)).mean(axis=(1, 2))
    after = np.abs(moved - a)[:, 1:-1, 1:-1].sum(axis=(1, 2))
    is_cropped[remaining] = (strays <= CROP_STRAY) & (after <= CROP_GAIN * before)
    return is_cropped


def _beyond(
    a: Floats, b: Floats, steepest: Floats, noise: float, edge: float
) -> tuple[Floats, Floats]:
    """Return by how much b is above a, and below it, beyond the allowed difference, in its units.

    Cells at the border are left out, since cropping changes them.
    """
    difference = (b - a)[:, 1:-1, 1:-1] / (noise + edge * steepest + np.float32(1e-3))
    return np.maximum(difference - 1, 0), np.maximum(-difference - 1, 0)


def _steepest(slopes: tuple[Floats, Floats]) -> Floats:
    """Return the steepest slope of two images around each cell that is not at the border."""
    slope = np.maximum(*slopes)
    wide = np.maximum(np.maximum(slope[:, :-2], slope[:, 1:-1]), slope[:, 2:])
    return np.maximum(np.maximum(wide[:, :, :-2], wide[:, :, 1:-1]), wide[:, :, 2:])


def _slope(cells: Floats) -> Floats:
    """Return the slope of brightness at each cell, in levels per cell."""
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    along = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    slope: Floats = np.sqrt(across**2 + along**2) / 2
    return slope


def _blurred(cells: Floats) -> Floats:
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    blurred: Floats = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    return blurred


def _match_brightness(a: Floats, b: Floats) -> Floats:
    """Adjust b to the brightness and contrast of a, by a fit that is robust to differing cells."""
    target, source = (_blurred(cells)[:, 1:-1, 1:-1].reshape(len(a), -1) for cells in (a, b))
    factor, offset = np.ones((2, len(a), 1), np.float32)
    offset -= 1
    for _ in range(4):
        weight = 1 / (np.abs(target - factor * source - offset) + 3)
        weight /= weight.sum(axis=1, keepdims=True)
        means = [(weight * cells).sum(axis=1, keepdims=True) for cells in (target, source)]
        spread = source - means[1]
        covariance = (weight * spread * (target - means[0])).sum(axis=1, keepdims=True)
        # Regularised towards a factor of 1, so that images without contrast do not change.
        variance = (weight * spread**2).sum(axis=1, keepdims=True)
        factor = np.clip((covariance + 10) / (variance + 10), *FACTORS)
        offset = np.clip(means[0] - factor * means[1], *OFFSETS)
    adjusted: Floats = b * factor[:, :, None] + offset[:, :, None]
    return adjusted


def _step(a: Floats, b: Floats, q: Doubles) -> tuple[Doubles, Floats, Floats]:
    """Compute a Gauss-Newton step that aligns b with a.

    Args:
        a: (n, side, side).
        b: (n, side, side).
        q: (n, 6), current shift and stretch across and along, factor and offset of brightness.

    Returns:
        The step, (n, 6); the difference before it, (n,); and the predicted one after it, (n,).
    """
    n, side, _ = a.shape
    coordinates = ((np.arange(side) + 0.5) / side - 0.5)[1:-1].astype(np.float32)
    moved = _blurred(_stretched(b, q))
    inner, factor, offset = moved[:, 1:-1, 1:-1], _parameter(q, 4), _parameter(q, 5)
    error = (_blurred(a)[:, 1:-1, 1:-1] - (factor * inner + offset)).reshape(n, 1, -1)
    across = factor * (moved[:, 1:-1, 2:] - moved[:, 1:-1, :-2]) * (side / 2)
    along = factor * (moved[:, 2:, 1:-1] - moved[:, :-2, 1:-1]) * (side / 2)
    stretches = across * coordinates, along * coordinates[:, None]
    changes = (across, along, *stretches, inner - 128, np.ones_like(inner))
    jacobian = np.stack(changes, axis=1).reshape(n, 6, -1)
    weighted = jacobian / (np.abs(error) + 3)
    # Regularised towards no step, so that images without slopes do not move.
    pull = np.diag(np.array([0.1, 0.1, 0.03, 0.03, 10, 0]) * side**2 + 0.01)
    normal = weighted @ jacobian.transpose(0, 2, 1) + pull
    step = np.linalg.solve(normal, weighted @ error.transpose(0, 2, 1))
    predicted = error - step.transpose(0, 2, 1).astype(np.float32) @ jacobian
    step[:, 5] -= 128 * step[:, 4]
    sums = (np.abs(values).sum(axis=(1, 2)) for values in (error, predicted))
    return step[:, :, 0], *sums


def _apply_step(q: Doubles, step: Doubles) -> Doubles:
    limits = [MAX_SHIFT, MAX_SHIFT, MAX_STRETCH, MAX_STRETCH]
    low = [*[-limit for limit in limits], FACTORS[0], OFFSETS[0]]
    high = [*limits, FACTORS[1], OFFSETS[1]]
    stepped: Doubles = (q + step).clip(low, high)
    return stepped


def _align(b: Floats, q: Doubles) -> Floats:
    placed: Floats = _stretched(b, q) * _parameter(q, 4) + _parameter(q, 5)
    return placed


def _parameter(q: Doubles, parameter: int) -> Floats:
    return q[:, parameter, None, None].astype(np.float32)


def _stretched(b: Floats, q: Doubles) -> Floats:
    """Shift and stretch thumbnails by cubic interpolation (Keys, 1981)."""
    rows, columns = (_weights(b.shape[1], q[:, i], q[:, i + 2]) for i in (1, 0))
    stretched: Floats = rows @ b @ columns.transpose(0, 2, 1)
    return stretched


def _weights(side: int, move: Doubles, stretch: Doubles) -> Floats:
    """Return interpolation weights along one axis, (n, side, side): new cells by old cells."""
    coordinates = (np.arange(side) + 0.5) / side - 0.5
    positions = (0.5 + coordinates * (1 + stretch[:, None]) + move[:, None]) * side - 0.5
    first = np.floor(positions).astype(np.int64)
    f = positions - first
    weights = np.zeros((len(move), side, side), np.float32)
    image, cell = np.ogrid[: len(move), :side]
    for step, weight in (
        (-1, (-(f**3) + 2 * f**2 - f) / 2),
        (0, (3 * f**3 - 5 * f**2 + 2) / 2),
        (1, (-3 * f**3 + 4 * f**2 + f) / 2),
        (2, (f**3 - f**2) / 2),
    ):
        np.add.at(weights, (image, cell, np.clip(first + step, 0, side - 1)), weight)
    return weights
