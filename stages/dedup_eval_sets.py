"""Reads evaluation sets, whose images must not be in training data."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages import sources
from stages.base import digest
from stages.dedup_digests import Digests
from stages.dedup_fingerprints import ImagePrints
from stages.sources import SourceConfig

__all__ = ["EvaluationImages", "content"]

logger = logging.getLogger(__name__)


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
        digests = np.frombuffer(b"".join(sha256), ">u8").astype(np.uint64).reshape(-1, 2)
        return cls(sets=tuple(sets), names=tuple(names), sha256=digests, prints=prints)


def content(path: str, field: str = "dedup.against") -> str:
    """Return a digest of the contents of an evaluation set.

    Args:
        path: A set, as of `EvaluationImages.read`.
        field: The field of the manifest that names it, for messages.

    Raises:
        ValueError: The set does not exist.
    """
    with sources.named(field):
        return _content(path, digest(sources.identity(SourceConfig(source=path))))


@functools.lru_cache(maxsize=256)
def _content(path: str, identity: str) -> str:
    """Return the digest of a set; cached until file sizes or times change."""
    return sources.content_digest(SourceConfig(source=path))[:16]
