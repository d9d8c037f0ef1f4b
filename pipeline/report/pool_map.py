"""A picture of the pool: some rows in the plane of the two principal components of embeddings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.report.examples import Example
from pipeline.results.sampling import RowLocation
from pipeline.results.verdicts import Results
from stages.embed import EmbedStage, vectors

__all__ = ["MOST", "Embedded", "Point", "PoolMap", "draw", "principal"]

MOST = 200
"""Rows drawn, each with its card on the page."""

WIDTH, HEIGHT, MARGIN = 200, 100, 3
"""The size of the picture, and what is left free around it."""

Floats = npt.NDArray[np.float64]


class Embedded(NamedTuple):
    """A row with an embedding, and whether it is kept."""

    location: RowLocation
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row in the picture."""

    x: float
    y: float
    is_kept: bool
    example: Example


@dataclass(frozen=True, kw_only=True)
class PoolMap:
    """The picture.

    Attributes:
        rows: Rows with an embedding, of which the points are drawn at random.
        points: The points.
        shares: The share of the variance of these embeddings along the x axis and the y axis.
    """

    rows: int
    points: Sequence[Point]
    shares: tuple[float, float]


def draw(
    results: Results,
    rows: int,
    sample: Sequence[Embedded],
    seen: Mapping[RowLocation, Example],
) -> PoolMap | None:
    """Draw rows of a run; None if fewer than three have an embedding.

    Args:
        results: The results of the run.
        rows: Rows with an embedding.
        sample: The rows to draw.
        seen: What the page shows of them.
    """
    if len(sample) < 3:
        return None
    by_shard: dict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(sample):
        by_shard[one.location.shard].append(number)
    found: dict[int, npt.NDArray[np.float16]] = {}
    for shard, numbers in by_shard.items():
        path = (*results.plan.folder(EmbedStage.name), f"{shard}.parquet")
        column = results.run.read_table(*path, columns=["image_embedding"])["image_embedding"]
        taken = column.take(pa.array([sample[number].location.row for number in numbers]))
        found |= dict(zip(numbers, vectors(taken)[0], strict=True))
    plane, shares = principal(np.stack([found[number] for number in range(len(sample))]))
    low, span = plane.min(axis=0), np.maximum(np.ptp(plane, axis=0), 1e-12)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    places = np.round(MARGIN + (plane - low) / span * room, 1)
    points = [
        Point(x=x, y=y, is_kept=one.is_kept, example=seen[one.location])
        for one, (x, y) in zip(sample, places.tolist(), strict=True)
    ]
    return PoolMap(rows=rows, points=points, shares=shares)


def principal(embeddings: npt.NDArray[np.float16]) -> tuple[Floats, tuple[float, float]]:
    """Project embeddings on their two principal components.

    Args:
        embeddings: (n, d), n and d at least 2.

    Returns:
        (n, 2) the coordinates, of which the one farthest from 0 on each axis is positive; and the
        share of the variance along each axis.
    """
    whole = embeddings.astype(np.float64)
    whole -= whole.mean(axis=0)
    left, sizes, _ = np.linalg.svd(whole, full_matrices=False)
    plane: Floats = left[:, :2] * sizes[:2]
    farthest = plane[np.abs(plane).argmax(axis=0), [0, 1]]
    plane *= np.where(farthest < 0, -1, 1)
    shares = np.square(sizes) / max(float(np.square(sizes).sum()), 1e-300)
    return plane, (float(shares[0]), float(shares[1]))
