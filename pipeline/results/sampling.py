"""A sample of rows that a seed and their uids decide, whatever the order they come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.random import splitmix

__all__ = ["Place", "Ranks", "Smallest", "ranks_of"]

T = TypeVar("T")
Ranks = npt.NDArray[np.uint64]


class Place(NamedTuple):
    """Where a row lies."""

    shard: str
    row: int


class Smallest(Generic[T]):
    """The `size` values of smallest rank among all that were offered, whatever the order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._found: list[tuple[tuple[float, int], T]] = []

    def offer(
        self,
        ranks: Ranks,
        value: Callable[[int], T],
        nearness: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Offer a value for each rank; `value` makes those that are taken.

        Where `nearness` is given it comes before the rank.
        """
        if nearness is not None:
            chosen = np.lexsort((ranks, nearness))[: self.size]
        else:
            chosen = np.arange(len(ranks))
            if len(self._found) == self.size:
                chosen = np.flatnonzero(ranks < self._found[-1][0][1])
            if len(chosen) > self.size:
                chosen = chosen[np.argpartition(ranks[chosen], self.size)[: self.size]]
        for index in chosen:
            near = 0.0 if nearness is None else float(nearness[index])
            self._found.append(((near, int(ranks[index])), value(int(index))))
        self._cut()

    def put(self, rank: int, value: T) -> None:
        """Offer one value."""
        self._found.append(((0.0, rank), value))
        self._cut()

    def _cut(self) -> None:
        self._found.sort(key=lambda entry: entry[0])
        del self._found[self.size :]

    @property
    def values(self) -> list[T]:
        """The values, smallest rank first."""
        return [value for _, value in self._found]


def ranks_of(uids: pa.Array[Any], seed: int) -> Ranks:
    """A rank for each row that its uid and the seed alone decide, by splitmix64."""
    heads = (int(str(uid)[:16], 16) for uid in uids.to_pylist())
    values = np.fromiter(heads, dtype=np.uint64, count=len(uids))
    return splitmix(values + np.uint64(seed))
