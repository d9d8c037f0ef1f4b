"""Connected components of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["connected_components"]

Int64s = npt.NDArray[np.int64]


def connected_components(n: int, i: Int64s, j: Int64s) -> Int64s:
    """Number the connected components of n nodes.

    Args:
        n: The number of nodes.
        i: (m,) one end of each edge, from 0 to n - 1.
        j: (m,) the other end of each edge.

    Returns:
        (n,) the number of each node's component.
    """
    # The imports take a quarter of a second, and most stages do not need them.
    from scipy.sparse import coo_matrix, csgraph

    graph = coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(n, n))
    labels: Any = csgraph.connected_components(graph, directed=False)[1]
    return np.asarray(labels, np.int64)
