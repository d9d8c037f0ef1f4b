"""Histograms as counted, and bars of shares as inline SVG, coloured by CSS class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from pipeline.results.tables import printable

__all__ = ["Histogram", "share_bar", "stacked_bar"]


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
