"""Evaluation sets, whose images must not be in training data."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.image.hamming import near_between
from models.image.perceptual_hash import hamming
from stages import sources
from stages.dedup import digests
from stages.dedup.config import DedupConfig
from stages.dedup.digests import Digests
from stages.dedup.fingerprints import Fingerprints
from stages.dedup.groups import Int64s
from stages.dedup.images import alike
from stages.image_prints import ImagePrints

__all__ = ["SUMMARY", "EvaluationImages", "evaluation_columns"]

logger = logging.getLogger(__name__)

SUMMARY: dict[str, Any] = {
    "evaluation_set": pa.string(),
    "evaluation_image": pa.string(),
    "evaluation_distance": pa.int32(),
}
"""The nearest image of an evaluation set and the Hamming distance to its hash; null if no such
image is near."""


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """The m images of all evaluation sets.

    Attributes:
        sets: (m,) path of the set of each image.
        names: (m,) name of each image in its set.
        sha256: (m, 2) digests of the encoded images.
        prints: Fingerprints of the images.
    """

    sets: tuple[str, ...]
    names: tuple[str, ...]
    sha256: Digests
    prints: ImagePrints

    @classmethod
    def read(cls, paths: Sequence[str]) -> EvaluationImages:
        """Read every image of every set.

        Args:
            paths: Folders of images, tars, Parquet files with an image column, and lists that name
                image files.

        Raises:
            ValueError: A set is missing or has no image.
        """
        sets: list[str] = []
        names: list[str] = []
        sha256: list[bytes] = []

        def encoded() -> Iterator[bytes]:
            for path in paths:
                before = len(sets)
                with sources.named("dedup.against"):
                    for name, data in sources.images(path):
                        sets.append(path)
                        names.append(name)
                        sha256.append(hashlib.sha256(data).digest()[:16])
                        yield data
                if len(sets) == before:
                    raise ValueError(
                        f"dedup.against: {path} holds no images; give a folder of images or "
                        f"a Parquet file with an `image` column"
                    )

        prints = ImagePrints.of(encoded())
        if num_undecodable := int((prints.contrast < 0).sum()):
            logger.warning(
                "dedup.against: %d of %d images cannot be decoded; only equal files match them",
                *(num_undecodable, len(names)),
            )
        files = np.frombuffer(b"".join(sha256), ">u8").astype(np.uint64).reshape(-1, 2)
        return cls(sets=tuple(sets), names=tuple(names), sha256=files, prints=prints)


def evaluation_columns(
    rows: Fingerprints, kept: Int64s, config: DedupConfig
) -> dict[str, pa.Array[Any]]:
    """Return the columns of `SUMMARY` for n rows.

    Args:
        rows: n rows.
        kept: (n,) the representative of each row.
        config: The evaluation sets, and the thresholds of a copy.
    """
    if not config.against:
        return {name: pa.nulls(len(rows), type) for name, type in SUMMARY.items()}
    images = _evaluation_images(config.against, config.contents)
    prints = images.prints
    matches = [digests.matches(rows.sha256, images.sha256)]
    ours = np.flatnonzero(rows.contrast >= config.min_contrast)
    theirs = np.flatnonzero(prints.contrast >= config.min_contrast)
    near = alike((rows, ours), (prints, theirs), config)
    for i, j in near_between(rows.phash[ours], prints.phash[theirs], config.max_hamming):
        is_near = near(i, j)
        matches.append((ours[i[is_near]], theirs[j[is_near]]))
    i, j = (np.concatenate(parts) for parts in zip(*matches, strict=True))
    is_undecodable, theirs_undecodable = rows.contrast < 0, prints.contrast < 0
    ranked = np.lexsort((j, hamming(rows.phash[i], prints.phash[j])))[::-1]
    i, j = i[ranked], j[ranked]
    nearest = np.full(len(rows), -1)
    nearest[kept[i]] = j  # numpy keeps the last assignment, which is the nearest image
    nearest = nearest[kept]
    nearest[i] = j
    is_clear = nearest < 0
    distance = hamming(rows.phash, prints.phash[nearest]).astype(np.int32)
    which: Any = pa.array(nearest, mask=is_clear)
    return {
        "evaluation_set": pa.array(images.sets).take(which),
        "evaluation_image": pa.array(images.names).take(which),
        "evaluation_distance": pa.array(
            distance, mask=is_clear | is_undecodable | theirs_undecodable[nearest]
        ),
    }


@functools.lru_cache(maxsize=1)
def _evaluation_images(against: tuple[str, ...], contents: tuple[str, ...]) -> EvaluationImages:
    """Read evaluation sets; cached for all parts of a summary."""
    return EvaluationImages.read(against)
