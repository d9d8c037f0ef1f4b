"""A sweep of the threshold of semantic copies: what each epsilon would drop.

SemDeDup's epsilon (arXiv:2303.09540) is 1 minus `dedup.semantic`. The cosines are those that dedup
stored, with the nearest row that stays at today's threshold. So the count is exact there; another
threshold would let other rows stay, and may drop a few more or fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.report.figures import Figure
from pipeline.report.plots import shares
from stages.base import floats

__all__ = ["Sweep", "figure"]

EPSILONS = np.round(np.arange(101) * 0.005, 3)
"""The epsilons, ascending."""


class Sweep:
    """Counts of the rows that each of `EPSILONS` would drop, and of those that were compared."""

    def __init__(self) -> None:
        self.compared = 0
        self.dropped = np.zeros(len(EPSILONS), np.int64)

    def add(self, rows: pa.Table) -> None:
        """Count rows with what dedup found."""
        self.compared += len(rows) - rows["semantic_copy"].null_count
        cosines = floats(rows["semantic_cosine"].drop_null()).astype(np.float32)
        least = (1 - EPSILONS).astype(np.float32)[::-1]
        reached = np.searchsorted(least, cosines, "right")
        counts = np.bincount(reached, minlength=len(least) + 1)[1:]
        self.dropped += np.cumsum(counts[::-1])

    def facts(self) -> dict[str, Any] | None:
        """The entry of report.json; None if no rows were compared."""
        if not self.compared:
            return None
        return {
            "compared": self.compared,
            "epsilons": EPSILONS.tolist(),
            "dropped": self.dropped.tolist(),
        }


def figure(facts: Mapping[str, Any], epsilon: float) -> Figure:
    """The share of the compared rows that each epsilon drops, with today's epsilon marked."""
    title, compared = "dropped as semantic copies, by epsilon", facts["compared"]
    remark = f"of {compared:,} rows compared; epsilon is 1 - dedup.semantic, the line is today's"
    line = [
        (epsilon, number / compared)
        for epsilon, number in zip(facts["epsilons"], facts["dropped"], strict=True)
    ]
    return Figure(
        title=title,
        plot=shares(
            "dropped",
            line,
            "reject",
            x_label="epsilon",
            label=f"Curve: {title}, {remark}",
            threshold=round(epsilon, 6),
        ),
        legend=(("reject", "dropped"),),
        remark=remark,
    )
