"""Semantic copies: images of one scene, by their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.copies import find_copies
from models.embedding.vectors import Float16s
from models.random import splitmix
from stages.dedup import digests
from stages.dedup.digests import Digests

__all__ = ["SUMMARY", "semantic_columns"]

SUMMARY: dict[str, pa.DataType] = {
    "semantic_nearest": pa.string(),
    "semantic_cosine": pa.float32(),
    "semantic_copy": pa.bool_(),
}
"""- semantic_nearest, semantic_cosine: the nearest row that stays and is ranked before this
  one, and its cosine; null without one, and for rows that are not compared.
- semantic_copy: whether the row is a copy of it; null for rows that are not compared.
"""


def semantic_columns(
    uid: Digests, compared: npt.NDArray[np.int64], embeddings: Float16s, min_cosine: float
) -> dict[str, Any]:
    """Return the columns of `SUMMARY` for n rows.

    Args:
        uid: (n, 2) uids as digests.
        compared: (m,) the rows that are compared, best rank first.
        embeddings: (m, d) the embeddings of these.
        min_cosine: Least cosine of a copy.
    """
    found = find_copies(embeddings, min_cosine, splitmix(uid[compared, 0]))
    nearest = np.full(len(uid), -1)
    cosine = np.full(len(uid), np.nan, np.float32)
    is_copy = np.zeros(len(uid), bool)
    has = found.nearest >= 0
    nearest[compared[has]] = compared[found.nearest[has]]
    cosine[compared], is_copy[compared] = found.cosine, found.is_copy
    is_compared = np.zeros(len(uid), bool)
    is_compared[compared] = True
    return {
        "semantic_nearest": digests.to_hex(np.where(nearest[:, None] >= 0, uid[nearest], 0)),
        "semantic_cosine": pa.array(cosine, mask=np.isnan(cosine)),
        "semantic_copy": pa.array(is_copy, mask=~is_compared),
    }
