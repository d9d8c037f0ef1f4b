"""Cosines between many embeddings, computed in blocks.

Embeddings are rows of unit length. They are kept in float16 and computed with in float32.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Float16s", "Float32s", "blocks", "cosines_with", "highest", "top"]

Float16s = npt.NDArray[np.float16]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

ROWS = 8192
"""Rows of a block."""


CLOSE = 4e-6
"""Float32 cosines that differ by less may be in the wrong order."""


def blocks(number: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices that cover `number` rows in order."""
    for start in range(0, number, rows):
        yield slice(start, min(start + rows, number))


def cosines_with(embeddings: Float32s, others: Float32s) -> tuple[Float32s, Int64s, Float32s]:
    """Compare each embedding with all others.

    Args:
        embeddings: (n, d).
        others: (m, d), at least one.

    Returns:
        (n,) the highest cosine; (n,) the first of the others with it; and (n,) the L2 norm of all
        cosines, NormSim's with p = 2 (arXiv:2405.19547).
    """
    highest = np.full(len(embeddings), -np.inf, np.float32)
    nearest = np.zeros(len(embeddings), np.int64)
    squares = np.zeros(len(embeddings), np.float64)
    for part in blocks(len(others)):
        cosines = embeddings @ others[part].T
        best = cosines.argmax(axis=1)
        value = cosines[np.arange(len(best)), best]
        is_better = value > highest
        highest[is_better], nearest[is_better] = value[is_better], best[is_better] + part.start
        squares += np.square(cosines, dtype=np.float64).sum(axis=1)
    return highest, nearest, np.sqrt(squares).astype(np.float32)


def highest(queries: Float32s, others: Float32s, number: int) -> Int64s:
    """The others with the highest cosines with each query.

    faiss finds them where it is installed, on all cores. The result depends neither on that nor on
    which queries are given together: float64 decides between others whose float32 cosines differ by
    less than `CLOSE`; of equal ones, the first is taken.

    Args:
        queries: (n, d).
        others: (k, d).
        number: How many others for each query, from 1 to k.

    Returns:
        (n, number) their positions, the highest cosine first.
    """
    # One more than wanted shows whether the last one is sure.
    found, value = _by_float32(queries, others, min(number + 1, len(others)))
    found = found[:, :number]
    unsure = np.flatnonzero((value[:, :-1] - value[:, 1:] < CLOSE).any(axis=1))
    least = value[unsure, number - 1] - np.float32(CLOSE)
    for part in blocks(len(unsure)):
        cosines = queries[unsure[part]] @ others.T
        for row, bound, own in zip(unsure[part].tolist(), least[part], cosines, strict=True):
            close = np.flatnonzero(own >= bound)
            exact = (others[close].astype(np.float64) * queries[row]).sum(axis=1)
            found[row] = close[np.lexsort((close, -exact))][:number]
    return found


def _by_float32(queries: Float32s, others: Float32s, number: int) -> tuple[Int64s, Float32s]:
    """The others with the highest cosines in float32, and these; see `highest`."""
    faiss = _faiss()
    if faiss is not None and len(queries):
        cosine, at = faiss.knn(queries, others, number, metric=faiss.METRIC_INNER_PRODUCT)
        return at, cosine
    cosines = queries @ others.T
    rows = np.arange(len(queries))
    found, value = (
        np.zeros((len(rows), number), np.int64),
        np.zeros((len(rows), number), np.float32),
    )
    for place in range(number):
        found[:, place] = best = cosines.argmax(axis=1)
        value[:, place] = cosines[rows, best]
        cosines[rows, best] = -np.inf
    return found, value


@functools.cache
def _faiss() -> Any:
    """The module faiss; None where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def top(query: Float32s, embeddings: Float16s, number: int) -> tuple[Int64s, Float32s]:
    """The rows most like one embedding, exactly, in blocks.

    Args:
        query: (d,).
        embeddings: (n, d).
        number: How many rows at most.

    Returns:
        Their positions and cosines, the highest first; of equal cosines the first row.
    """
    cosines = np.concatenate(
        [np.zeros(0, np.float32)]
        + [embeddings[part].astype(np.float32) @ query for part in blocks(len(embeddings))]
    )
    number = min(number, len(cosines))
    if not number:
        return np.zeros(0, np.int64), cosines[:0]
    least = np.partition(cosines, len(cosines) - number)[len(cosines) - number]
    rows = np.flatnonzero(cosines >= least)
    order = rows[np.lexsort((rows, -cosines[rows]))][:number]
    return order, cosines[order]
