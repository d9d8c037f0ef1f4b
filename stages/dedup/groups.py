"""Groups of rows as arrays of group numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.components import connected_components

__all__ = ["Bools", "Int64s", "components", "distinct", "first"]

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def components(n: int, *links: tuple[Int64s, Int64s]) -> Int64s:
    """Number the connected components of n rows; returns the number of each row's component."""
    a, b = (np.concatenate(ends) for ends in zip(*links, strict=True))
    return connected_components(n, a, b)


def first(labels: Int64s, order: Int64s) -> Int64s:
    """Return for each label 0, 1, ... the first row in `order` that has it."""
    first = np.zeros(int(labels.max(initial=-1)) + 1, np.int64)
    first[labels[order[::-1]]] = order[::-1]
    return first


def distinct(groups: Int64s, values: Int64s, num_groups: int) -> Int64s:
    """Count the distinct values of each of the groups 0, 1, ..."""
    width = int(values.max(initial=0)) + 1
    pairs = np.sort(groups * width + values)
    is_first = np.diff(pairs, prepend=-1) > 0
    return np.bincount(pairs[is_first] // width, minlength=num_groups)
