"""The kept images that are least like the others: the ends of each number of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.results.image_numbers import ISOLATION, MOST, isolation
from pipeline.results.sampling import Ranks, RowLocation, Smallest
from pipeline.results.verdicts import Mask, Results
from stages.base import Floats

__all__ = ["ENDS", "End", "Extremes"]

SHOWN = 4
"""Images of each end."""


class End(NamedTuple):
    """One end of a number of images.

    Attributes:
        title: What an image there is.
        number: The number: a key of `image_numbers`, or isolation.
        is_high: Whether it is the upper end.
        remark: What the number is.
        write: Writes a value.
    """

    title: str
    number: str
    is_high: bool
    remark: str
    write: Callable[[float], str]


ENDS = (
    End(
        "Unlike all others",
        ISOLATION,
        True,
        "distance to the nearest other image, 1 minus the cosine of their embeddings",
        "{:.3f}".format,
    ),
    End(
        "Blurred or plain",
        "sharpness",
        False,
        "variance of the Laplacian of a 32 x 32 thumbnail",
        "{:.0f}".format,
    ),
    End("Dark", "brightness", False, "mean brightness, of 255", "{:.0f}".format),
    End("Bright", "brightness", True, "mean brightness, of 255", "{:.0f}".format),
    End("Wide", "aspect", True, "width divided by height", "{:.2f}".format),
    End("Tall", "aspect", False, "width divided by height", "{:.2f}".format),
)


@dataclass(frozen=True)
class Extreme:
    """The images at one end, the farthest first, each with its number."""

    end: End
    rows: list[tuple[RowLocation, float]]


class Extremes:
    """Collects the ends of the numbers of images, a shard at a time."""

    def __init__(self) -> None:
        self._ends: dict[End, Smallest[tuple[RowLocation, float]]] = {}
        self._images: Smallest[RowLocation] = Smallest(MOST)

    def offer(self, shard: str, ranks: Ranks, numbers: Mapping[str, Floats], kept: Mask) -> None:
        """Offer the images of a shard.

        Args:
            shard: The shard.
            ranks: (n,) the rank of each row, which decides between equal numbers.
            numbers: The `image_numbers` of the n rows.
            kept: (n,) which rows are kept.
        """
        images = np.flatnonzero(kept)
        self._images.offer(ranks[images], lambda at: RowLocation(shard, int(images[at])))
        for end in ENDS:
            if end.number in numbers:
                rows = np.flatnonzero(kept & ~np.isnan(numbers[end.number]))
                self._offer(end, shard, rows, ranks[rows], numbers[end.number][rows])

    def _offer(self, end: End, shard: str, rows: np.ndarray, ranks: Ranks, values: Floats) -> None:
        found = self._ends.setdefault(end, Smallest(SHOWN))
        found.offer(
            ranks,
            lambda at: (RowLocation(shard, int(rows[at])), float(values[at])),
            -values if end.is_high else values,
        )

    def extremes(self, results: Results) -> list[Extreme]:
        """The ends that there are, in the order of `ENDS`."""
        distances = isolation(results, self._images.values)
        ordered = sorted(distances.items(), key=lambda entry: (-entry[1], entry[0]))
        found = []
        for end in ENDS:
            if end.number == ISOLATION:
                rows = ordered[:SHOWN]
            else:
                rows = self._ends[end].values if end in self._ends else []
            if rows:
                found.append(Extreme(end, rows))
        return found
