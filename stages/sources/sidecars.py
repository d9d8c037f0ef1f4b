"""What the .txt and the .json beside an image say of it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from stages.sources.columns import (
    CAPTION_COLUMNS,
    UID_COLUMNS,
    URL_COLUMNS,
    recognise,
    text_of,
    uid_text,
)
from stages.sources.config import Source
from stages.sources.row import decode

__all__ = ["LONGEST", "SIDECARS", "Told", "told"]

SIDECARS = frozenset({"txt", "json"})
LONGEST = 2**20
"""Bytes that are read of a sidecar."""


class Told(NamedTuple):
    """The URL, the caption and the source's own id of an image, each null where nothing tells."""

    url: str | None
    caption: str | None
    uid: str | None


def told(txt: bytes | None, meta: bytes | None, source: Source) -> Told:
    """Read the sidecars of an image.

    The caption is, in order of preference, under the name that the source gives, under `caption` in
    the .json, where img2dataset keeps it exactly as it was, in the .txt, and under another
    recognised name in the .json.
    """
    record = _object(meta)
    names = list(record)

    def get(name: str | None, *recognised: str) -> Any:
        found = name if name is not None else recognise(names, recognised)
        return None if found is None else record.get(found)

    if source.caption_column is not None:
        caption = text_of(get(source.caption_column))
    elif "caption" in record:
        caption = text_of(record["caption"])
    elif txt is not None:
        caption = decode(txt).rstrip("\r\n")
    else:
        caption = text_of(get(None, *CAPTION_COLUMNS))
    return Told(
        text_of(get(source.url_column, *URL_COLUMNS)),
        caption,
        uid_text(get(None, *UID_COLUMNS)),
    )


def _object(content: bytes | None) -> dict[str, Any]:
    """The JSON object; empty where there is none."""
    try:
        record = json.loads(decode(content)) if content else {}
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
