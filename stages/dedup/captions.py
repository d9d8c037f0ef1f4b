"""The captions of dedup: which are near duplicates, and which an image takes over from copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.text.captions import caption_key
from models.text.minhash import caption_centres
from stages.dedup.config import DedupConfig
from stages.dedup.fingerprints import Fingerprints
from stages.dedup.groups import Bools, Int64s, distinct, first

__all__ = ["caption_stars", "further_captions"]


def caption_stars(
    rows: Fingerprints, caption: Int64s, order: Int64s, image: Int64s, config: DedupConfig
) -> tuple[Int64s, npt.NDArray[np.int32]]:
    """Cluster captions into stars.

    Args:
        rows: n rows.
        caption: (n,) the number of each row's caption, -1 without one.
        order: (n,) the rows, best rank first.
        image: (n,) the row at the centre of each row's image.
        config: The thresholds of near duplicates.

    Returns:
        (n,) a row with the caption at the centre of each row's star, -1 without a caption; and
        (n,) the number of distinct images of the star, 0 without a caption.
    """
    captioned = np.flatnonzero(caption >= 0)
    row_of = first(caption, order[caption[order] >= 0])
    images = distinct(caption[captioned], image[captioned], len(row_of))
    ranked = np.argsort(-images, kind="stable")
    rows_ranked = row_of[ranked]
    centres = caption_centres(
        (band.read()[rows_ranked] for band in rows.bands),
        lambda position: caption_key(rows.text(rows_ranked[position])),
        len(ranked),
        min_jaccard=config.min_jaccard,
        min_template=config.min_template or None,
    )
    star_of = np.empty(len(ranked), np.int64)
    star_of[ranked] = ranked[centres]
    own = star_of[caption[captioned]]
    centre, spread = np.full(len(rows), -1), np.zeros(len(rows), np.int32)
    centre[captioned] = row_of[own]
    spread[captioned] = distinct(own, image[captioned], len(row_of))[own]
    return centre, spread


def further_captions(
    rows: Fingerprints,
    caption: Int64s,
    usable: Int64s,
    order: Int64s,
    is_kept: Bools,
    most: int,
) -> pa.Array[Any]:
    """Return the further captions of each representative as lists of strings.

    Args:
        rows: n rows.
        caption: (n,) the number of each row's caption.
        usable: (n,) the representative of each row with a usable caption, -1 for the others.
        order: (n,) the rows, best rank first.
        is_kept: (n,) whether each row is a representative.
        most: Maximum number of further captions of one image.
    """
    further = order[(usable[order] >= 0) & ~is_kept[order]]
    further = further[caption[further] != caption[usable[further]]]
    further = further[np.argsort(usable[further], kind="stable")]
    pairs = usable[further] * (int(caption.max(initial=0)) + 1) + caption[further]
    further = further[np.sort(np.unique(pairs, return_index=True)[1])]
    starts = np.flatnonzero(np.diff(usable[further], prepend=-1))
    position = np.arange(len(further)) - np.repeat(starts, np.diff(starts, append=len(further)))
    further = further[position < most]
    ends = np.cumsum(np.bincount(usable[further], minlength=len(rows)))
    offsets: Any = np.append(0, ends).astype(np.int32)
    texts = pa.array([rows.text(row) for row in further.tolist()], pa.string())
    lists: pa.Array[Any] = pa.ListArray.from_arrays(
        pa.array(offsets), texts, mask=pa.array(~is_kept)
    )
    return lists
