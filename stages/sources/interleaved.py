"""Interleaved documents: a row for each of their images, and the documents themselves."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pyarrow as pa

from stages.documents import Document, parse
from stages.sources.lists import lines
from stages.sources.place import Place
from stages.sources.row import Row, clean, decode

__all__ = ["documents", "is_interleaved", "rows"]


def is_interleaved(place: Place) -> bool:
    """Whether a list of JSON Lines begins with a document in the form of MMC4 or OBELICS."""
    return place.kind == "jsonl" and next(documents(place), None) is not None


def documents(place: Place) -> Iterator[Document | None]:
    """The documents of a list, in order; None for a line that is none.

    Raises:
        ValueError: The file cannot be read.
    """
    with (
        place.read_as("jsonl", pa.ArrowException),
        place.open() as raw,
        io.BufferedReader(raw) as stream,
    ):
        for line in filter(bytes.strip, lines(stream, place)):
            yield _document(line)


def _document(line: bytes) -> Document | None:
    try:
        record = json.loads(decode(line))
        if b"\\ud" in line.lower():
            record = json.loads(clean(json.dumps(record, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return None
    return parse(record) if isinstance(record, dict) else None


def rows(place: Place) -> Iterator[Row]:
    """A row for each image of each document, without a caption; `source_uid` is the document's."""
    for document in documents(place):
        if document is not None:
            yield from (Row(url, None, document.uid) for url in document.images)
