"""Counts the most frequent texts in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Frequent"]

LONGEST = 1000
"""Characters of a text that are compared; texts that differ only after these count as equal."""


class Frequent:
    """Counts texts with the merged summaries of Misra and Gries (Agarwal et al., PODS 2012).

    The counts are exact while there are at most twice `size` distinct texts. After that, a count
    may be too low by at most `missed`, and a text without a count occurred at most `missed` times.
    `missed` is never more than the number of all texts divided by `size`.

    Args:
        size: How many texts to count.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.missed = 0
        self._counts: dict[str, int] = {}

    def add(self, texts: pa.Array[Any]) -> None:
        """Count texts; nulls are skipped."""
        counts: Any = pc.value_counts(pc.utf8_slice_codeunits(texts.drop_null(), 0, LONGEST))
        values, numbers = (counts.field(name).to_pylist() for name in ("values", "counts"))
        for text, number in zip(values, numbers, strict=True):
            self._counts[text] = self._counts.get(text, 0) + number
        if len(self._counts) > 2 * self.size:
            self._cut()

    def _cut(self) -> None:
        """Subtract the (`size` + 1)-th highest count from every count."""
        counts = np.fromiter(self._counts.values(), np.int64, len(self._counts))
        least = int(np.partition(counts, -self.size - 1)[-self.size - 1])
        self.missed += least
        self._counts = {text: n - least for text, n in self._counts.items() if n > least}

    def most(self, number: int) -> list[tuple[str, int]]:
        """The most frequent texts that occur more than once, with their counts."""
        repeated = [(text, n) for text, n in self._counts.items() if n > 1]
        return sorted(repeated, key=lambda entry: (-entry[1], entry[0]))[:number]
