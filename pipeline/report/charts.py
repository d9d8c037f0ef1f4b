"""Histograms as counted, and bars of shares as inline SVG, coloured by CSS class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from pipeline.results.tables import printable

__all__ = ["GrowingHistogram", "Histogram", "share_bar", "stacked_bar"]

MOST_BINS = 40
FINEST = 12
"""The narrowest bin is the largest absolute value divided by two to this power, or a bit more."""

WIDEST = 1000
"""Powers of two of the widths of bins lie between this and its negative."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts over fixed bins.

    Attributes:
        edges: n + 1 ascending bounds.
        series: n counts for each series, by its name. A later series is a part of an earlier one
            and is drawn over it.
    """

    edges: Sequence[float]
    series: Mapping[str, list[int]]

    @classmethod
    def empty(cls, edges: Sequence[float], *names: str) -> Histogram:
        """Zeros for each series."""
        return cls(edges=edges, series={name: [0] * (len(edges) - 1) for name in names})

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Count values in a series; those beyond the ends count in the outermost bins."""
        last = np.nextafter(self.edges[-1], -np.inf)
        counts, _ = np.histogram(np.clip(values, self.edges[0], last), np.asarray(self.edges))
        for index, count in enumerate(counts.tolist()):
            self.series[name][index] += count

    @property
    def total(self) -> int:
        """The sum of the first series."""
        return sum(next(iter(self.series.values()), []))


class GrowingHistogram:
    """Counts of numbers whose range is not known in advance, over at most `MOST_BINS` bins.

    The width of the bins is a power of two, and bins begin at multiples of it. It doubles when the
    range grows, which joins two bins to one, so that the counts are exact and the same in any
    order.

    Args:
        names: The series; a later one is a part of an earlier one.
        is_whole: Whether the numbers are whole, so that no bin is narrower than 1.
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
        # A small negative number scales to zero, and belongs to the bin below it.
        bins = np.where((values < 0) & (scaled == 0), -1, np.floor(scaled)).astype(np.int64)
        for index, number in zip(*np.unique(bins, return_counts=True), strict=True):
            self._counts[name][int(index)] += int(number)

    def _needed(self) -> int | None:
        """The power of two that bins must at least be wide to hold the range."""
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


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element; text and attribute values are escaped.

    A trailing underscore of an attribute's name is dropped, others become hyphens.
    """
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
    )
    content = Markup("").join(
        child if isinstance(child, Markup) else escape(printable(child)) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), pairs, content)


def stacked_bar(parts: Sequence[tuple[str, float]], total: float, label: str) -> Markup:
    """One horizontal bar cut in parts.

    Args:
        parts: CSS class and size of each part, left to right.
        total: What the whole width stands for.
        label: What a screen reader says.
    """
    marks, x = [], 0.0
    for class_, size in parts:
        width = 1000 * size / total if total else 0.0
        if width:
            marks.append(tag("rect", x=x, y=0, width=width, height=10, class_=class_))
        x += width
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=1000, height=10, class_="track"),
        *marks,
        class_="bar",
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def share_bar(share: float, class_: str, label: str) -> Markup:
    """One horizontal bar for a share of 1."""
    return stacked_bar([(class_, min(max(share, 0.0), 1.0))], 1.0, label)


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
