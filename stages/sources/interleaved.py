"""Reads interleaved documents: the documents themselves, and a row for each of their images."""

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


def is_interleaved(source_file: SourceFile) -> bool:
    """Whether a list of JSON Lines begins with a document in the form of MMC4 or OBELICS."""
    return source_file.kind == "jsonl" and next(documents(source_file), None) is not None


def documents(source_file: SourceFile) -> Iterator[Document | None]:
    """Yield the documents of a list, in order; None for a line that is not a document.

    Raises:
        ValueError: The file cannot be read.
    """
    for _, document, _ in _numbered(source_file):
        yield document


def _numbered(source_file: SourceFile) -> Iterator[tuple[int, Document | None, str]]:
    """Yield for each non-blank line its number, its document, and why it is not a document."""
    with source_file.read_as("jsonl", pa.ArrowException):
        for number, record, why in objects(source_file):
            document = None if record is None else parse(_without_surrogates(record))
            yield number, document, why or "is not a document"


def _without_surrogates(record: dict[str, Any]) -> dict[str, Any]:
    """Replace lone surrogates in a record by U+FFFD."""
    text = json.dumps(record, ensure_ascii=False)
    cleaned = clean(text)
    result: dict[str, Any] = record if cleaned is text else json.loads(cleaned)
    return result


def rows(source_file: SourceFile) -> Iterator[Row]:
    """Yield a row without a caption for each image of each document.

    `source_uid` is the id of the document. A line that is not a document gives a row that says why.
    """
    for number, document, why in _numbered(source_file):
        if document is None:
            yield Row("", number=number, why=why)
        else:
            yield from (Row(url, None, document.uid, number=number) for url in document.images)
