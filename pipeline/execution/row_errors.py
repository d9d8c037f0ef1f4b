"""Which rows of a shard raise an error as they are measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import ContractError

__all__ = ["measure_by_row"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Rows = npt.NDArray[np.int64]


# What the machine, the installation or the stage lacks is the fault of no row.
_NOT_OF_A_ROW = (OSError, MemoryError, ImportError, ContractError)

MOST_FAILURES = 8
"""Rows that may fail while most do; with one more the stage is broken, not the rows."""


def measure_by_row(
    rows: Rows, measure: Callable[[Rows], T], name_of: Callable[[int], str]
) -> list[tuple[Rows, T]]:
    """Measure rows together, and where that raises an error, without those that raise it.

    They are found by halves: for f of n rows that fail, in at most 2 f (log2 n + 1) calls. Each
    is logged with its error.

    Args:
        rows: (n,) places of the rows.
        measure: What is found of some of the rows.
        name_of: What a row is called in the log.

    Returns:
        Runs of rows with what was found of them, in order; the rows of no run are those that fail.

    Raises:
        Exception: The error of `measure`, if most rows raise one, if it comes from the machine
            (OSError, MemoryError, also CUDA's, ImportError), or if the stage breaks its contract
            (ContractError).
    """
    found: list[tuple[Rows, T]] = []
    failed = good = 0
    spans = [rows]
    while spans:
        span = spans.pop()
        try:
            found.append((span, measure(span)))
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
    return found
