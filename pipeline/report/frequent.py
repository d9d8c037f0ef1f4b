"""The most frequent of any number of texts, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Frequent"]

LONGEST = 1000
"""Characters of a text that count; texts that only differ after these are one."""


class Frequent:
    """Counts of texts by the merged summaries of Misra and Gries (Agarwal et al., PODS 2012).

    They are exact while there are at most twice `size` distinct texts. After that each may be too
    low, by `missed` at most, and a text that is not counted occurred at most so often: never more
    than a share of 1 / `size` of all texts.

    Args:
        size: How many texts to keep count of.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.missed = 0
        self._counts: dict[str, int] = {}

    def add(self, texts: pa.Array[Any]) -> None:
        """Count texts; null is none."""
        found: Any = pc.value_counts(pc.utf8_slice_codeunits(texts.drop_null(), 0, LONGEST))
        values, numbers = (found.field(name).to_pylist() for name in ("values", "counts"))
        for text, number in zip(values, numbers, strict=True):
            self._counts[text] = self._counts.get(text, 0) + number
        if len(self._counts) > 2 * self.size:
            self._cut()

    def _cut(self) -> None:
        """Take the count of the most frequent text beyond `size` off every count."""
        counts = np.fromiter(self._counts.values(), np.int64, len(self._counts))
        least = int(np.partition(counts, -self.size - 1)[-self.size - 1])
        self.missed += least
        self._counts = {text: n - least for text, n in self._counts.items() if n > least}

    def most(self, number: int) -> list[tuple[str, int]]:
        """The most frequent texts that occur more than once, with their counts."""
        repeated = [(text, n) for text, n in self._counts.items() if n > 1]
        return sorted(repeated, key=lambda entry: (-entry[1], entry[0]))[:number]
