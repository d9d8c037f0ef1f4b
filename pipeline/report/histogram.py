"""Histograms: counts over fixed bins, or over bins that grow with the range of the numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GrowingHistogram", "Histogram"]

MOST_BINS = 40
FINEST = 12
"""A bin is at least as wide as the largest absolute value divided by two to this power."""

WIDEST = 1000
"""The width of a bin is two to a power between this and its negative."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts over fixed bins.

    Attributes:
        edges: n + 1 ascending bounds.
        series: n counts for each series, by its name. A later series counts a subset of an earlier
            one and is drawn over it.
    """

    edges: Sequence[float]
    series: Mapping[str, list[int]]

    @classmethod
    def empty(cls, edges: Sequence[float], *names: str) -> Histogram:
        """A histogram with a count of zero in every bin of each series."""
        return cls(edges=edges, series={name: [0] * (len(edges) - 1) for name in names})

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Count values in a series; a value beyond the bounds counts in the outermost bin."""
        last = np.nextafter(self.edges[-1], -np.inf)
        counts, _ = np.histogram(np.clip(values, self.edges[0], last), np.asarray(self.edges))
        for index, count in enumerate(counts.tolist()):
            self.series[name][index] += count

    @property
    def total(self) -> int:
        """The sum of the first series."""
        return sum(next(iter(self.series.values()), []))


class GrowingHistogram:
    """Counts numbers whose range is not known in advance, over at most `MOST_BINS` bins.

    The width of the bins is a power of two, and bins begin at multiples of it. When the range
    grows, the width doubles and pairs of bins are joined. So the counts are exact and do not
    depend on the order of the numbers.

    Args:
        names: The series; a later one counts a subset of an earlier one.
        is_whole: Whether the numbers are whole; then no bin is narrower than 1.
    """

    def __init__(self, *names: str, is_whole: bool) -> None:
        self.is_whole = is_whole
        self._counts: dict[str, Counter[int]] = {name: Counter() for name in names}
        self._power: int | None = None  # log2 of the width; None while all numbers are 0
        self._low = math.inf
        self._high = -math.inf

    def add(self, name: str, values: npt.NDArray[np.float64]) -> None:
        """Count numbers in a series; NaN and numbers beyond 2 to the power of 1000 are left out."""
        values = values[np.abs(values) < 2.0**WIDEST]
        if not len(values):
            return
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        self._widen(self._needed())
        scaled = np.ldexp(values, -(self._power or 0))
        # A tiny negative number scales to zero, but belongs to the bin below zero.
        bins = np.where((values < 0) & (scaled == 0), -1, np.floor(scaled)).astype(np.int64)
        for index, number in zip(*np.unique(bins, return_counts=True), strict=True):
            self._counts[name][int(index)] += int(number)

    def _needed(self) -> int | None:
        """The smallest power of two, as a width of the bins, with which the range fits."""
        largest = max(abs(self._low), abs(self._high))
        if not largest:
            return None
        power = 0 if self.is_whole else max(math.frexp(largest)[1] - FINEST, -WIDEST)
        while self._index(self._high, power) - self._index(self._low, power) >= MOST_BINS:
            power += 1
        return power

    @staticmethod
    def _index(value: float, power: int) -> int:
        scaled = math.ldexp(value, -power)
        return -1 if value < 0 and not scaled else math.floor(scaled)

    def _widen(self, power: int | None) -> None:
        if self._power is not None and power is not None and power > self._power:
            for name, counts in self._counts.items():
                wider: Counter[int] = Counter()
                for index, number in counts.items():
                    wider[index >> (power - self._power)] += number
                self._counts[name] = wider
        self._power = power

    def histogram(self) -> Histogram | None:
        """The counts over all bins from the lowest number to the highest; None without numbers."""
        if self._high < self._low:
            return None
        power = self._power or 0
        first, last = (self._index(value, power) for value in (self._low, self._high))
        return Histogram(
            edges=[math.ldexp(index, power) for index in range(first, last + 2)],
            series={
                name: [counts[index] for index in range(first, last + 1)]
                for name, counts in self._counts.items()
            },
        )
