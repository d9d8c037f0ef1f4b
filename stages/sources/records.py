"""The records of a list of any format."""

from __future__ import annotations

from collections.abc import Iterator

from stages.sources import coco, documents, lists
from stages.sources.columns import Finder, Record
from stages.sources.place import Place

__all__ = ["records"]


def records(place: Place, finder: Finder) -> Iterator[Record]:
    """What a list says, record for record: CSV, TSV, JSON Lines, Parquet, or one JSON document.

    Args:
        place: The list.
        finder: Finds what its columns hold.

    Raises:
        ValueError: It cannot be read, or lacks a column.
    """
    if place.kind != "json":
        return lists.records(place, finder)
    kind, key = documents.kind(place)
    if kind == "coco":
        return coco.records(place, finder)
    if kind == "sbu":
        return documents.pairs(place, finder)
    if kind == "karpathy":
        return documents.karpathy(place, finder)
    return documents.records(place, finder, key)
