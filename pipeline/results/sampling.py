"""Samples of rows that depend on a seed and the uids, and not on the order of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.random import splitmix

__all__ = ["Ranks", "RowLocation", "Smallest", "ranks_of"]

T = TypeVar("T")
Ranks = npt.NDArray[np.uint64]


class RowLocation(NamedTuple):
    """The shard of a row of the pool, and its index there."""

    shard: str
    row: int


class Smallest(Generic[T]):
    """Keeps the values with the smallest ranks, whatever the order in which values are offered.

    Args:
        size: How many values to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: list[tuple[tuple[float, int], T]] = []

    def offer(
        self,
        ranks: Ranks,
        value: Callable[[int], T],
        nearness: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Offer n values.

        Args:
            ranks: (n,) the rank of each value.
            value: Makes the value of an index; called only for values that may be kept.
            nearness: (n,) compared before the rank, smaller first.
        """
        if nearness is not None:
            chosen = np.lexsort((ranks, nearness))[: self.size]
        else:
            chosen = np.arange(len(ranks))
            if len(self._entries) == self.size:
                chosen = np.flatnonzero(ranks < self._entries[-1][0][1])
            if len(chosen) > self.size:
                chosen = chosen[np.argpartition(ranks[chosen], self.size)[: self.size]]
        for index in chosen:
            near = 0.0 if nearness is None else float(nearness[index])
            self._entries.append(((near, int(ranks[index])), value(int(index))))
        self._cut()

    def put(self, rank: int, value: T) -> None:
        """Offer one value with its rank."""
        self._entries.append(((0.0, rank), value))
        self._cut()

    def _cut(self) -> None:
        self._entries.sort(key=lambda entry: entry[0])
        del self._entries[self.size :]

    @property
    def values(self) -> list[T]:
        """The kept values, smallest rank first."""
        return [value for _, value in self._entries]


def ranks_of(uids: pa.Array[Any], seed: int) -> Ranks:
    """Rank rows by a hash (splitmix64) of the uid and the seed; (n,)."""
    heads = (int(str(uid)[:16], 16) for uid in uids.to_pylist())
    values = np.fromiter(heads, dtype=np.uint64, count=len(uids))
    return splitmix(values + np.uint64(seed))
