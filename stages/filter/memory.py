"""The scores of an image that the filter has measured so far, looked up by what a model reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

__all__ = ["SCORED", "Memory"]

MEASURES: dict[str, pa.DataType] = {
    **dict.fromkeys(("itm", "itc", "cosine"), pa.float32()),
    "unread": pa.int32(),
}
"""What a model says of an image and a text."""
SCORED: pa.DataType = pa.list_(pa.struct([("read", pa.int64()), *MEASURES.items()]))
"""What each model said of each text that it has ever read of an image; see `_key`."""


class Memory:
    """Every score of some rows, those of earlier measurements included.

    Attributes:
        column: (n,) the values of the column `scored`.
    """

    def __init__(self, column: list[list[dict[str, Any]]]) -> None:
        self.column = column
        self._found = [
            {one["read"]: {k: one[k] for k in MEASURES if one[k] is not None} for one in some}
            for some in column
        ]

    @classmethod
    def of(cls, rows: pa.Table) -> Memory:
        """What is remembered of n rows."""
        if "scored" not in rows.column_names:
            return cls([[] for _ in range(len(rows))])
        return cls([some or [] for some in rows["scored"].to_pylist()])

    def new(self, role: str, texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
        """The texts that a model has not read yet, by row; rows without one are left out.

        Args:
            role: The model.
            texts: (n,) the texts of each row, as the model reads them.
        """
        found = {
            row: [text for text in own if _key(role, text) not in self._found[row]]
            for row, own in enumerate(texts)
        }
        return {row: own for row, own in found.items() if own}

    def known(self, role: str, texts: Sequence[Sequence[str]]) -> list[dict[str, dict[str, Any]]]:
        """What a model said of the texts of each row; texts that it has not read are left out."""
        return [
            {text: found[key] for text in own if (key := _key(role, text)) in found}
            for own, found in zip(texts, self._found, strict=True)
        ]

    def add(self, row: int, role: str, text: str, measures: Mapping[str, Any]) -> None:
        """Remember what a model says of a text."""
        key = _key(role, text)
        self._found[row][key] = dict(measures)
        self.column[row].append({"read": key, **measures})


def _key(role: str, text: str) -> int:
    """64 bits that stand for a model of the recipe and a text as it reads it."""
    found = hashlib.blake2b(f"{role}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)
