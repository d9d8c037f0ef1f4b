"""Whether two pictures that look alike in small are one picture: a comparison cell by cell.

A perceptual hash sees the layout of a picture alone, so different prints on one T-shirt, or charts
of one axis, have one hash. Here thumbnails are laid over each other. A copy of other size or
quality differs nowhere by more than the edge that runs there explains. A watermark makes many
cells brighter, or many darker, but hardly both, while a print in the place of another print does
both. A crop agrees once it is moved and stretched back (Lucas and Kanade, IJCAI 1981).
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
"""Pairs compared at once, some 30 MB."""

NOISE, EDGE = 4.0, 0.12
"""Levels of 255, and share of the steepest slope around a cell, by which copies differ."""

FLAT_NOISE, FLAT_EDGE = 3.0, 0.06
"""The same under an overlay on a picture with few slopes: its copies have little noise."""

CROP_NOISE, CROP_EDGE = 6.0, 0.3
"""The same where one picture was moved: no cell lies exactly on another."""

BUSY, BUSY_SHARE = 1.0, 0.65
"""The slope of a cell with detail, and the share of such cells that makes a photograph."""

STRAY_CELLS = 1
"""Cells that may differ in copies of other size or quality."""

MOST_COVERED = 0.25
"""The share of cells that an overlay may change."""

AGAINST = 0.02
"""By how much an overlay may also change cells the other way, as a share."""

STEEP, MOVED, MOVED_SHARE = 8.0, 0.15, 0.3
"""The slope at which a move shows, the part of a cell that does, the least share of such cells."""

CROP_STRAY = 0.006
"""The share of cells that may differ in a crop that was moved back."""

FORESEEN = 0.75
"""What the first step of moving a crop back must foresee to leave of the difference."""

CROP_GAIN = 0.5
"""What moving a crop back must leave of the difference, as a share at most."""

MOST_MOVED, MOST_STRETCHED = 0.05, 0.08
"""How far a crop may be moved, and how much stretched, as a share of the side."""

FACTORS, OFFSETS = (0.8, 1.25), (-30.0, 30.0)
"""How much lighter and how much richer in contrast a copy may be."""


def are_copies(ours: UInt8s, theirs: UInt8s, tolerance: float = 1.0) -> Bools:
    """Whether pictures are copies: resized, recompressed, lighter, cropped a little or marked.

    Args:
        ours: Thumbnails from `hashing.luma`, (n, 32, 32).
        theirs: The thumbnail that each is compared with, (n, 32, 32).
        tolerance: A factor of how far cells may differ. At 0 none may; a large one takes all.

    Returns:
        (n,).
    """
    found: Bools = (ours == theirs).all(axis=(1, 2))
    unequal = np.flatnonzero(~found)
    for start in range(0, len(unequal), CHUNK):
        some = unequal[start : start + CHUNK]
        a = ours[some].astype(np.float32)
        b = _lit(a, theirs[some].astype(np.float32))
        slopes = _slope(a), _slope(b)
        found[some] = _is_same_or_marked(a, b, slopes, tolerance)
        left = np.flatnonzero(~found[some] & _may_have_moved(a, b, slopes))
        if len(left):
            found[some[left]] = _is_cropped(a[left], b[left], tolerance)
    return found


def _is_same_or_marked(
    a: Floats, b: Floats, slopes: tuple[Floats, Floats], tolerance: float
) -> Bools:
    """Whether one is the other, as it is or under an overlay lighter, or darker, than it hides."""
    steepest = _steepest(slopes)
    up, down = _beyond(a, b, steepest, tolerance * NOISE, tolerance * EDGE)
    changed = ((up > 0) | (down > 0)).sum(axis=(1, 2))
    found: Bools = changed <= STRAY_CELLS
    sums = up.sum(axis=(1, 2)), down.sum(axis=(1, 2))
    is_one_way = np.minimum(*sums) <= AGAINST * np.maximum(*sums)
    left = np.flatnonzero(~found & is_one_way & (changed <= MOST_COVERED * up[0].size))
    if len(left):
        # With few slopes to hold against it, a change is the picture's own unless it is pure.
        up, down = _beyond(
            a[left], b[left], steepest[left], tolerance * FLAT_NOISE, tolerance * FLAT_EDGE
        )
        is_pure = np.minimum((up > 0).sum(axis=(1, 2)), (down > 0).sum(axis=(1, 2))) == 0
        least = np.minimum(slopes[0][left], slopes[1][left])[:, 1:-1, 1:-1]
        found[left] = is_pure | ((least > BUSY).mean(axis=(1, 2)) >= BUSY_SHARE)
    return found


def _may_have_moved(a: Floats, b: Floats, slopes: tuple[Floats, Floats]) -> Bools:
    """Whether so many of the steep cells differ that one picture may be a crop of the other."""
    is_steep = np.maximum(*slopes) > STEEP
    differs = is_steep & (np.abs(a - b) > STEEP * MOVED)
    may: Bools = differs.sum(axis=(1, 2)) >= MOVED_SHARE * is_steep.sum(axis=(1, 2))
    return may


def _is_cropped(a: Floats, b: Floats, tolerance: float) -> Bools:
    """Whether they agree once the second is moved and stretched onto the first.

    Least squares by the method of Gauss and Newton, reweighted so that what an overlay changes
    hardly counts, over the move and the stretch across and along, and the factor and the offset of
    brightness. Where the first step foresees no gain, the pictures differ in something else.
    """
    found = np.zeros(len(a), bool)
    q = np.tile([0.0, 0, 0, 0, 1, 0], (len(a), 1))
    step, before, foreseen = _step(a, b, q)
    left = np.flatnonzero(foreseen <= FORESEEN * before)
    if not len(left):
        return found
    a, b, q, before = a[left], b[left], _stepped(q[left], step[left]), before[left]
    for _ in range(7):
        q = _stepped(q, _step(a, b, q)[0])
    moved = _blurred(_placed(b, q))
    a = _blurred(a)
    steepest = _steepest((_slope(a), _slope(moved)))
    up, down = _beyond(a, moved, steepest, tolerance * CROP_NOISE, tolerance * CROP_EDGE)
    strays = ((up > 0) | (down > 0)).mean(axis=(1, 2))
    after = np.abs(moved - a)[:, 1:-1, 1:-1].sum(axis=(1, 2))
    found[left] = (strays <= CROP_STRAY) & (after <= CROP_GAIN * before)
    return found


def _beyond(
    a: Floats, b: Floats, steepest: Floats, noise: float, edge: float
) -> tuple[Floats, Floats]:
    """By how much b is over a, and under it, beyond what is allowed, in units of that.

    The cells of the rim are left out: cropping changes them.
    """
    difference = (b - a)[:, 1:-1, 1:-1] / (noise + edge * steepest + np.float32(1e-3))
    return np.maximum(difference - 1, 0), np.maximum(-difference - 1, 0)


def _steepest(slopes: tuple[Floats, Floats]) -> Floats:
    """The steepest slope of two pictures around each cell that is not of the rim."""
    slope = np.maximum(*slopes)
    wide = np.maximum(np.maximum(slope[:, :-2], slope[:, 1:-1]), slope[:, 2:])
    return np.maximum(np.maximum(wide[:, :, :-2], wide[:, :, 1:-1]), wide[:, :, 2:])


def _slope(cells: Floats) -> Floats:
    """The steepness of brightness at each cell, in levels a cell."""
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


def _lit(a: Floats, b: Floats) -> Floats:
    """The second with the brightness and contrast of the first, fitted where most cells agree."""
    target, given = (_blurred(one)[:, 1:-1, 1:-1].reshape(len(a), -1) for one in (a, b))
    factor, offset = np.ones((2, len(a), 1), np.float32)
    offset -= 1
    for _ in range(4):
        weight = 1 / (np.abs(target - factor * given - offset) + 3)
        weight /= weight.sum(axis=1, keepdims=True)
        means = [(weight * one).sum(axis=1, keepdims=True) for one in (target, given)]
        spread = given - means[1]
        together = (weight * spread * (target - means[0])).sum(axis=1, keepdims=True)
        # A pull to 1, so that pictures without contrast stay as they are.
        alone = (weight * spread**2).sum(axis=1, keepdims=True)
        factor = np.clip((together + 10) / (alone + 10), *FACTORS)
        offset = np.clip(means[0] - factor * means[1], *OFFSETS)
    lit: Floats = b * factor[:, :, None] + offset[:, :, None]
    return lit


def _step(a: Floats, b: Floats, q: Doubles) -> tuple[Doubles, Floats, Floats]:
    """A step towards laying the second on the first.

    Returns:
        (n, 6), the step; (n,), the difference before it, and (n,), what it foresees.
    """
    n, side, _ = a.shape
    place = ((np.arange(side) + 0.5) / side - 0.5)[1:-1].astype(np.float32)
    laid = _blurred(_stretched(b, q))
    inner, factor, offset = laid[:, 1:-1, 1:-1], _each(q, 4), _each(q, 5)
    error = (_blurred(a)[:, 1:-1, 1:-1] - (factor * inner + offset)).reshape(n, 1, -1)
    across = factor * (laid[:, 1:-1, 2:] - laid[:, 1:-1, :-2]) * (side / 2)
    along = factor * (laid[:, 2:, 1:-1] - laid[:, :-2, 1:-1]) * (side / 2)
    stretches = across * place, along * place[:, None]
    changes = (across, along, *stretches, inner - 128, np.ones_like(inner))
    jacobian = np.stack(changes, axis=1).reshape(n, 6, -1)
    weighted = jacobian / (np.abs(error) + 3)
    # A pull to where it is, so that pictures without slopes stay.
    pull = np.diag(np.array([0.1, 0.1, 0.03, 0.03, 10, 0]) * side**2 + 0.01)
    normal = weighted @ jacobian.transpose(0, 2, 1) + pull
    step = np.linalg.solve(normal, weighted @ error.transpose(0, 2, 1))
    foreseen = error - step.transpose(0, 2, 1).astype(np.float32) @ jacobian
    step[:, 5] -= 128 * step[:, 4]
    sums = (np.abs(one).sum(axis=(1, 2)) for one in (error, foreseen))
    return step[:, :, 0], *sums


def _stepped(q: Doubles, step: Doubles) -> Doubles:
    most = [MOST_MOVED, MOST_MOVED, MOST_STRETCHED, MOST_STRETCHED]
    low = [*[-one for one in most], FACTORS[0], OFFSETS[0]]
    high = [*most, FACTORS[1], OFFSETS[1]]
    stepped: Doubles = (q + step).clip(low, high)
    return stepped


def _placed(b: Floats, q: Doubles) -> Floats:
    placed: Floats = _stretched(b, q) * _each(q, 4) + _each(q, 5)
    return placed


def _each(q: Doubles, parameter: int) -> Floats:
    return q[:, parameter, None, None].astype(np.float32)


def _stretched(b: Floats, q: Doubles) -> Floats:
    """Thumbnails moved and stretched, by cubic interpolation (Keys, 1981)."""
    rows, columns = (_weights(b.shape[1], q[:, i], q[:, i + 2]) for i in (1, 0))
    stretched: Floats = rows @ b @ columns.transpose(0, 2, 1)
    return stretched


def _weights(side: int, move: Doubles, stretch: Doubles) -> Floats:
    """(n, side, side): how much of each old cell along an axis a new one has."""
    place = (np.arange(side) + 0.5) / side - 0.5
    at = (0.5 + place * (1 + stretch[:, None]) + move[:, None]) * side - 0.5
    first = np.floor(at).astype(np.int64)
    f = at - first
    weights = np.zeros((len(move), side, side), np.float32)
    picture, cell = np.ogrid[: len(move), :side]
    for step, weight in (
        (-1, (-(f**3) + 2 * f**2 - f) / 2),
        (0, (3 * f**3 - 5 * f**2 + 2) / 2),
        (1, (-3 * f**3 + 4 * f**2 + f) / 2),
        (2, (f**3 - f**2) / 2),
    ):
        np.add.at(weights, (picture, cell, np.clip(first + step, 0, side - 1)), weight)
    return weights
