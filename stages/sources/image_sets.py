"""Sets of images that a setting names, such as evaluation sets."""

from __future__ import annotations

import functools

from stages.base import digest
from stages.sources.config import SourceConfig
from stages.sources.dispatch import content_digest, identity
from stages.sources.samples import named

__all__ = ["content"]


def content(path: str, field: str) -> str:
    """Return a digest of the contents of a set.

    Args:
        path: A folder of images, a tar, a Parquet file with an image column, or a list that names
            image files.
        field: The field of the manifest that names it, for messages.

    Raises:
        ValueError: The set does not exist.
    """
    with named(field):
        return _content(path, digest(identity(SourceConfig(source=path))))


@functools.lru_cache(maxsize=256)
def _content(path: str, identity: str) -> str:
    """Return the digest of a set; cached until file sizes or times change."""
    return content_digest(SourceConfig(source=path))[:16]
