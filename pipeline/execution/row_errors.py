"""The search for the rows of a shard that raise an error when they are measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import ContractError, StageUnavailableError

__all__ = ["measure_by_row"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Rows = npt.NDArray[np.int64]


# Errors of the machine, the installation or the stage are not the fault of a row.
_NOT_OF_A_ROW = (OSError, MemoryError, ImportError, ContractError, StageUnavailableError)

MOST_FAILURES = 8
"""Rows that may fail if most rows fail; if more do, the stage is broken and not the rows."""


def measure_by_row(
    rows: Rows, measure: Callable[[Rows], T], name_of: Callable[[int], str]
) -> list[tuple[Rows, T]]:
    """Measure rows together, without those that raise an error.

    Rows that raise an error are found by halving: for f failing rows of n, in at most
    2 f (log2 n + 1) calls. Each is logged with its error.

    Args:
        rows: (n,) the indices of the rows.
        measure: Measures some of the rows.
        name_of: The name of a row in the log.

    Returns:
        Groups of rows with their measurements, in order; failing rows are in no group.

    Raises:
        Exception: The error of `measure`, if most rows raise one, if it comes from the machine
            (OSError, ImportError, MemoryError or CUDA's out of memory), if the stage breaks its
            contract (ContractError), or if its model is unavailable (StageUnavailableError).
    """
    groups: list[tuple[Rows, T]] = []
    failed = good = 0
    spans = [rows]
    while spans:
        span = spans.pop()
        try:
            groups.append((span, measure(span)))
            good += len(span)
        except _NOT_OF_A_ROW:
            raise
        except Exception as error:
            if "out of memory" in str(error).lower():
                raise
            if len(span) > 1:
                middle = len(span) // 2
                spans += [span[middle:], span[:middle]]
                continue
            failed += 1
            if failed > MOST_FAILURES and failed > good:
                raise
            logger.exception("%s cannot be measured and is rejected", name_of(int(span[0])))
    return groups
