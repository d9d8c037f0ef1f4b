"""Evaluation sets, whose images must not be trained on."""

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
    """The m images of some evaluation sets.

    Attributes:
        sets: (m,) the set of each.
        names: (m,) its name in the set.
        sha256: (m, 2) digests of the encoded images.
        prints: Their fingerprints.
    """

    sets: tuple[str, ...]
    names: tuple[str, ...]
    sha256: Digests
    prints: ImagePrints

    @classmethod
    def read(cls, paths: Sequence[str]) -> EvaluationImages:
        """Open every image of every set.

        Args:
            paths: Folders of images, tars, Parquet files with a column of images, and lists that
                name files.

        Raises:
            ValueError: A set is missing or holds no image.
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
                        f"Parquet with an `image` column"
                    )

        prints = ImagePrints.of(encoded())
        if lost := int((prints.contrast < 0).sum()):
            logger.warning(
                "dedup.against: %d of %d images cannot be opened and match by their bytes alone",
                *(lost, len(names)),
            )
        digests = np.frombuffer(b"".join(sha256), ">u8").astype(np.uint64).reshape(-1, 2)
        return cls(sets=tuple(sets), names=tuple(names), sha256=digests, prints=prints)


def content(path: str) -> str:
    """A digest of everything that an evaluation set holds.

    Raises:
        ValueError: There is no such set.
    """
    with sources.named("dedup.against"):
        return _content(path, digest(sources.identity(SourceConfig(source=path))))


@functools.lru_cache(maxsize=256)
def _content(path: str, identity: str) -> str:
    """The digest of a set, read again only when sizes or times change."""
    return sources.content_digest(SourceConfig(source=path))[:16]
