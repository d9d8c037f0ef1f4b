"""Semantic copies: rows whose embeddings are nearly those of a better row (SemDeDup, 2303.09540).

Clusters are stars: a row is a copy only if it is near the row that stays, never by a chain of
others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.embedding.cells import Cells
from models.embedding.vectors import Float16s, Float32s, blocks
from models.image.hamming import centres

__all__ = ["EXACT", "PROBES", "Copies", "find_copies", "nearest_better", "number_of_cells"]

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

EXACT = 32_768
"""Maximum number of rows that are all compared with each other; more are divided into cells."""

PROBES = 4
"""Number of cells in which a row is compared with better rows."""

ROWS = 8192
"""Number of rows that are decided together."""


class Copies(NamedTuple):
    """The nearest better row of each row.

    Attributes:
        nearest: (n,) the nearest row that stays, of those better than the row; -1 without one.
        cosine: (n,) its cosine; NaN without one.
        is_copy: (n,) whether the row is a copy of it.
    """

    nearest: Int64s
    cosine: Float32s
    is_copy: Bools


def find_copies(
    embeddings: Float16s,
    min_cosine: float,
    lots: UInt64s,
    *,
    cells: int | None = None,
    probes: int = PROBES,
) -> Copies:
    """Find the rows that are copies of better ones.

    Rows are taken from the best to the worst. A row is a copy if its cosine with a better row that
    stays is at least `min_cosine`; else it stays. With one cell this is exact. With k cells, a row
    is compared only with rows in the `probes` cells nearest to it.

    Args:
        embeddings: (n, d) unit vectors, the best row first; may be mapped from a file.
        min_cosine: Least cosine of a copy; SemDeDup's epsilon is 1 minus this.
        lots: (n,) a random number of each row, by which the cells are trained.
        cells: The number of cells; None is 1 up to `EXACT` rows, and the square root of n above.
        probes: Cells in which a row is compared.
    """
    n = len(embeddings)
    number = min(cells or number_of_cells(n), max(n, 1))
    if number == 1:
        probed = np.zeros((n, 1), np.int64)
    else:
        probed = Cells.train(embeddings, number, lots).nearest(embeddings, probes)
    inverted = _Inverted(np.bincount(probed[:, 0], minlength=number), embeddings.shape[1])
    nearest, cosine = np.full(n, -1), np.full(n, np.nan, np.float32)
    is_copy = np.ones(n, bool)
    least = np.float32(min_cosine)
    for part in blocks(n, ROWS):
        rows = np.arange(part.start, part.stop)
        block = np.asarray(embeddings[part], np.float32)
        queries = _by_cell(probed[part])
        home = probed[part, 0]
        best, at = inverted.nearest(block, queries)
        # Among the rows of the block, the better ones decide first.
        open_ = np.flatnonzero(best < least)
        i, j = _near_within(block, queries, home, best < least, least)
        ranks = np.full(len(block), -1)
        ranks[open_] = np.arange(len(open_))
        stays = open_[centres(len(open_), ranks[i], ranks[j]) == np.arange(len(open_))]
        inverted.add(block, rows, home, stays)
        value, where = _nearest_within(block, queries, home, stays)
        is_better = value > best
        best[is_better] = value[is_better]
        at[is_better] = rows[where[is_better]]
        is_copy[rows[stays]] = False
        nearest[part], cosine[part] = at, np.where(at < 0, np.float32(np.nan), best)
    return Copies(nearest, cosine, is_copy)


def number_of_cells(number: int) -> int:
    """The cells of so many rows: 1 up to `EXACT` rows, and the square root of them above."""
    return 1 if number <= EXACT else round(np.sqrt(number))


def nearest_better(
    embeddings: Float16s, probed: Int64s, asking: Bools, others: Bools
) -> tuple[Float32s, Int64s]:
    """The better row most like each row, among some others in the cells of the row.

    Args:
        embeddings: (n, d) unit vectors, the best row first.
        probed: (n, p) the cells that each row is compared in, the one that it lies in first; -1 for
            those of which no row is here.
        asking: (n,) the rows that ask.
        others: (n,) the rows that they may find.

    Returns:
        (n,) the highest cosine, -inf where nothing is found; and (n,) the row, -1 there.
    """
    best = np.full(len(probed), -np.inf, np.float32)
    at = np.full(len(probed), -1)
    found = np.flatnonzero(others & (probed[:, 0] >= 0))
    found = found[np.argsort(probed[found, 0], kind="stable")]
    home = probed[found, 0]
    rows = np.flatnonzero(asking)
    for cell, places in _by_cell(probed[rows]):
        own = found[np.searchsorted(home, cell) : np.searchsorted(home, cell, "right")]
        if not len(own):
            continue
        members = np.asarray(embeddings[own], np.float32)
        for part in blocks(len(places)):
            some = rows[places[part]]
            queries = np.asarray(embeddings[some], np.float32)
            for among in blocks(int(np.searchsorted(own, some[-1]))):
                cosines = queries @ members[among].T
                cosines[own[None, among] >= some[:, None]] = -np.inf
                _take_best(best, at, some, cosines, own[among])
    return best, at


def _by_cell(probed: Int64s) -> list[tuple[int, Int64s]]:
    """The rows that are compared in each cell, each row once."""
    row, probe = np.nonzero(probed >= 0)
    cell = probed[row, probe]
    order = np.argsort(cell, kind="stable")
    starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
    ends = np.append(starts[1:], [len(order)] * bool(len(order))).astype(np.int64)
    return [
        (int(cell[order[start]]), row[order[start:end]])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


class _Inverted:
    """The rows that stay, by their cells.

    Args:
        sizes: (k,) the most rows of each cell.
        width: Numbers of an embedding.
    """

    def __init__(self, sizes: Int64s, width: int) -> None:
        self.starts = np.cumsum(sizes) - sizes
        self.filled = np.zeros(len(sizes), np.int64)
        self.embeddings = np.zeros((int(sizes.sum()), width), np.float32)
        self.rows = np.zeros(int(sizes.sum()), np.int64)

    def add(self, block: Float32s, rows: Int64s, home: Int64s, stays: Int64s) -> None:
        """Add those rows of a block that stay."""
        order = stays[np.argsort(home[stays], kind="stable")]
        cell = home[order]
        first = np.searchsorted(cell, cell)
        position = self.starts[cell] + self.filled[cell] + np.arange(len(order)) - first
        self.embeddings[position], self.rows[position] = block[order], rows[order]
        self.filled += np.bincount(cell, minlength=len(self.filled))

    def nearest(
        self, block: Float32s, queries: list[tuple[int, Int64s]]
    ) -> tuple[Float32s, Int64s]:
        """The highest cosine of each row of a block with a row that stays, and that row."""
        best = np.full(len(block), -np.inf, np.float32)
        at = np.full(len(block), -1)
        for cell, asking in queries:
            start, number = self.starts[cell], self.filled[cell]
            for part in blocks(int(number)):
                own = slice(start + part.start, start + part.stop)
                _take_best(best, at, asking, block[asking] @ self.embeddings[own].T, self.rows[own])
        return best, at


def _take_best(best: Float32s, at: Int64s, asking: Int64s, cosines: Float32s, rows: Int64s) -> None:
    """Store the highest cosine of some rows where it is above the stored one."""
    where = cosines.argmax(axis=1)
    value = cosines[np.arange(len(where)), where]
    is_better = value > best[asking]
    best[asking[is_better]] = value[is_better]
    at[asking[is_better]] = rows[where[is_better]]


def _near_within(
    block: Float32s,
    queries: list[tuple[int, Int64s]],
    home: Int64s,
    is_open: Bools,
    least: np.float32,
) -> tuple[Int64s, Int64s]:
    """Pairs (i, j) of open rows of a block, i the better, that share a cell and are near."""
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for cell, asking in queries:
        asking = asking[is_open[asking]]
        own = asking[home[asking] == cell]
        if not len(own):
            continue
        cosines = block[asking] @ block[own].T
        cosines[own[None, :] >= asking[:, None]] = -np.inf
        j, i = np.nonzero(cosines >= least)
        pairs.append((own[i], asking[j]))
    i, j = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    return i, j


def _nearest_within(
    block: Float32s, queries: list[tuple[int, Int64s]], home: Int64s, stays: Int64s
) -> tuple[Float32s, Int64s]:
    """The highest cosine of each row of a block with a better one of it that stays, and that."""
    best = np.full(len(block), -np.inf, np.float32)
    at = np.full(len(block), -1)
    is_stay = np.zeros(len(block), bool)
    is_stay[stays] = True
    for cell, asking in queries:
        own = asking[is_stay[asking] & (home[asking] == cell)]
        if not len(own):
            continue
        cosines = block[asking] @ block[own].T
        cosines[own[None, :] >= asking[:, None]] = -np.inf
        _take_best(best, at, asking, cosines, own)
    return best, at
