"""Cells: spherical k-means, which puts near embeddings mostly into the same cell.

The result does not depend on the order of the rows: the sample and the first centres are the rows
with the smallest lots, float64 sums of float16 numbers are exact, and float64 decides which of two
centres is the nearest where float32 may err.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.embedding.vectors import Float16s, Float32s, blocks, highest

__all__ = ["Cells", "in_sample"]

Bools = npt.NDArray[np.bool_]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

SAMPLE = 64
"""Rows of the sample for each cell."""

ROUNDS = 10
"""Rounds of k-means."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The k centres of the cells, unit vectors, (k, d)."""

    centres: Float32s

    @classmethod
    def train(cls, embeddings: Float16s, number: int, lots: UInt64s) -> Cells:
        """Find centres by k-means over a sample of the rows.

        Args:
            embeddings: (n, d) unit vectors.
            number: The number of cells, from 1 to n.
            lots: (n,) a random number for each row, such as a hash of its uid.
        """
        sample = np.argsort(lots, kind="stable")[: SAMPLE * number]
        points: Any = embeddings[np.sort(sample)]
        first = np.searchsorted(np.sort(sample), sample[:number])
        cells = cls(centres=_unit(points[first].astype(np.float64)))
        for _ in range(ROUNDS if number > 1 else 1):
            nearest = cells.nearest(points)[:, 0]
            sums = np.zeros((number, points.shape[1]), np.float64)
            order = np.argsort(nearest, kind="stable")
            starts = np.searchsorted(nearest[order], np.arange(number + 1))
            for cell in range(number):
                own = points[order[starts[cell] : starts[cell + 1]]]
                sums[cell] = own.sum(axis=0, dtype=np.float64)
            is_empty = starts[1:] == starts[:-1]
            sums[is_empty] = cells.centres[is_empty]
            cells = cls(centres=_unit(sums))
        return cells

    def nearest(self, embeddings: Float16s, number: int = 1) -> Int64s:
        """The cells nearest to each of n embeddings, (n, number), the nearest first."""
        number = min(number, len(self.centres))
        found = np.zeros((len(embeddings), number), np.int64)
        for part in blocks(len(embeddings)):
            own = np.asarray(embeddings[part], np.float32)
            found[part] = highest(own, self.centres, number)
        return found

    def placed(self, embeddings: Float16s) -> tuple[Int64s, Float64s]:
        """(n,) the cell nearest to each of n embeddings, and (n,) the cosine distance from it."""
        cell = self.nearest(embeddings)[:, 0]
        distance = np.empty(len(embeddings))
        for part in blocks(len(embeddings)):
            own = embeddings[part].astype(np.float64)
            distance[part] = 1 - (own * self.centres[cell[part]]).sum(axis=1)
        return cell, distance


def in_sample(lots: UInt64s, rows: int, number: int) -> Bools:
    """Which rows of a part of a pool to train its cells on.

    Args:
        lots: (n,) a random number for each row of the part.
        rows: Rows of the pool.
        number: The number of cells.

    Returns:
        (n,) True for all rows that `Cells.train` samples from the pool, and for few others.
    """
    wanted = SAMPLE * number
    # The margin is eight standard deviations, so that all that are wanted are among these.
    share = (wanted + 8 * np.sqrt(wanted) + 64) / max(rows, 1)
    return lots < share * 2.0**64 if share < 1 else np.ones(len(lots), bool)


def _unit(sums: npt.NDArray[np.float64]) -> Float32s:
    """Rows of unit length; a row of zeros stays."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: Float32s = (sums / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return unit
