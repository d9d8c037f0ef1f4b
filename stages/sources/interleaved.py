"""Interleaved documents: a row for each of their images, and the documents themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stages.documents import Document, parse
from stages.sources.row import Row, clean
from stages.sources.source_files import SourceFile
from stages.sources.url_lists import objects

__all__ = ["documents", "is_interleaved", "rows"]


def is_interleaved(place: SourceFile) -> bool:
    """Whether a list of JSON Lines begins with a document in the form of MMC4 or OBELICS."""
    return place.kind == "jsonl" and next(documents(place), None) is not None


def documents(place: SourceFile) -> Iterator[Document | None]:
    """The documents of a list, in order; None for a line that is none.

    Raises:
        ValueError: The file cannot be read.
    """
    for _, document, _ in _numbered(place):
        yield document


def _numbered(place: SourceFile) -> Iterator[tuple[int, Document | None, str]]:
    """The number of each line that is not blank, its document, and why it is none."""
    with place.read_as("jsonl", pa.ArrowException):
        for number, record, why in objects(place):
            document = None if record is None else parse(_whole(record))
            yield number, document, why or "is no document"


def _whole(record: dict[str, Any]) -> dict[str, Any]:
    """The record without lone surrogates."""
    text = json.dumps(record, ensure_ascii=False)
    cleaned = clean(text)
    whole: dict[str, Any] = record if cleaned is text else json.loads(cleaned)
    return whole


def rows(place: SourceFile) -> Iterator[Row]:
    """A row for each image of each document, without a caption; `source_uid` is the document's.

    A line that is no document is a row that says why.
    """
    for number, document, why in _numbered(place):
        if document is None:
            yield Row("", number=number, why=why)
        else:
            yield from (Row(url, None, document.uid, number=number) for url in document.images)
