"""Interleaved documents: a row for each of their images, and the documents themselves."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

from stages.documents import Document, parse
from stages.sources.lists import lines
from stages.sources.place import Place
from stages.sources.row import Row, decode

__all__ = ["documents", "is_interleaved", "rows"]


def is_interleaved(place: Place) -> bool:
    """Whether a list of JSON Lines begins with a document in the form of MMC4 or OBELICS."""
    return place.kind == "jsonl" and next(documents(place), None) is not None


def documents(place: Place) -> Iterator[Document | None]:
    """The documents of a list, in order; None for a line that is none."""
    with place.open() as raw, io.BufferedReader(raw) as stream:
        for line in lines(stream, place):
            if not line.strip():
                continue
            try:
                record = json.loads(decode(line))
            except (ValueError, RecursionError):
                record = None
            yield parse(record) if isinstance(record, dict) else None


def rows(place: Place) -> Iterator[Row]:
    """A row for each image of each document, without a caption; `source_uid` is the document's."""
    for document in documents(place):
        if document is not None:
            yield from (Row(url, None, document.uid) for url in document.images)
