"""Reads the records of a list in any format."""

from __future__ import annotations

from collections.abc import Iterator

from stages.sources import coco, json_lists, url_lists
from stages.sources.columns import Finder, Record
from stages.sources.source_files import SourceFile

__all__ = ["records"]


def records(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Yield the records of a list: CSV, TSV, text, JSON Lines, Parquet, or one JSON document.

    Args:
        source_file: The list.
        finder: Finds the columns of the list.

    Raises:
        ValueError: The list cannot be read, or lacks a column.
    """
    if source_file.kind != "json":
        return url_lists.records(source_file, finder)
    kind, key = json_lists.kind(source_file)
    if kind == "coco":
        return coco.records(source_file, finder)
    if kind == "sbu":
        return json_lists.pairs(source_file, finder)
    if kind == "karpathy":
        return json_lists.karpathy(source_file, finder)
    return json_lists.records(source_file, finder, key)
