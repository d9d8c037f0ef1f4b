"""The records of a list of any format."""

from __future__ import annotations

from collections.abc import Iterator

from stages.sources import coco, json_lists, url_lists
from stages.sources.columns import Finder, Record
from stages.sources.source_files import SourceFile

__all__ = ["records"]


def records(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """What a list says, record for record: CSV, TSV, JSON Lines, Parquet, or one JSON document.

    Args:
        place: The list.
        finder: Finds what its columns hold.

    Raises:
        ValueError: It cannot be read, or lacks a column.
    """
    if place.kind != "json":
        return url_lists.records(place, finder)
    kind, key = json_lists.kind(place)
    if kind == "coco":
        return coco.records(place, finder)
    if kind == "sbu":
        return json_lists.pairs(place, finder)
    if kind == "karpathy":
        return json_lists.karpathy(place, finder)
    return json_lists.records(place, finder, key)
