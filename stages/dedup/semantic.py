"""Semantic copies: images of one scene, by their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.copies import find_copies
from models.embedding.vectors import Float16s, Float32s
from models.random import splitmix
from stages.dedup import digests
from stages.dedup.digests import Digests

__all__ = ["RANK", "STANDING", "SUMMARY", "find", "in_rank", "semantic_columns"]

SUMMARY: dict[str, pa.DataType] = {
    "semantic_nearest": pa.string(),
    "semantic_cosine": pa.float32(),
    "semantic_copy": pa.bool_(),
}
"""- semantic_nearest, semantic_cosine: the nearest row that stays and is ranked before this
  one, and its cosine; null without one, and for rows that are not compared.
- semantic_copy: whether the row is a copy of it; null for rows that are not compared.
"""


RANK = ("usable", "area", "caption_images", "words")
"""The columns by which dedup ranks rows, in this order and before the uid."""

STANDING: dict[str, pa.DataType] = {
    "compared": pa.bool_(),
    "usable": pa.bool_(),
    "area": pa.int64(),
    "words": pa.int32(),
}
"""What `DedupStage.clusters` says of rows beside the summary.

- compared: whether no rule of dedup but `semantic` rejects the row.
- usable: whether its caption is.
- area, words: the size of the original image, and the words of the caption.
"""


def in_rank(table: pa.Table, uid: Digests) -> npt.NDArray[np.int64]:
    """Sort rows with the columns of `RANK` as dedup ranks them; returns them best first."""
    is_usable = np.asarray(table["usable"])
    columns: list[Any] = [table[name] for name in RANK[1:]]
    area, images, words = (np.asarray(column.fill_null(0)) for column in columns)
    high, low = uid.T
    return np.lexsort((low, high, -words, images, -area, ~is_usable))


def find(
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
    nearest = np.zeros((len(uid), 2), np.uint64)
    cosine = np.full(len(uid), np.nan, np.float32)
    is_copy, is_compared = np.zeros((2, len(uid)), bool)
    has = found.nearest >= 0
    nearest[compared[has]] = uid[compared[found.nearest[has]]]
    cosine[compared], is_copy[compared], is_compared[compared] = found.cosine, found.is_copy, True
    return semantic_columns(is_compared, nearest, cosine, is_copy)


def semantic_columns(
    is_compared: npt.NDArray[np.bool_],
    nearest: Digests,
    cosine: Float32s,
    is_copy: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """Return the columns of `SUMMARY` for n rows.

    Args:
        is_compared: (n,) whether each row is compared.
        nearest: (n, 2) the uid of the row that it is nearest to, zeros without one.
        cosine: (n,) their cosine, NaN without one.
        is_copy: (n,) whether it is a copy of that row.
    """
    return {
        "semantic_nearest": digests.to_hex(nearest),
        "semantic_cosine": pa.array(cosine, mask=np.isnan(cosine)),
        "semantic_copy": pa.array(is_copy, mask=~is_compared),
    }
