"""The texts of an image: web, synthetic and further ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from stages.schema import web_captions

__all__ = ["KINDS", "distinct", "texts_of"]

KINDS = ("web", "synthetic", "further")
"""The texts of an image: its web caption, synthetic ones, and web captions of its duplicates."""


def texts_of(rows: pa.Table) -> list[dict[str, list[str | None]]]:
    """The texts of each row by kind, exactly one of the web."""
    columns: dict[str, list[Any]] = {"web": [[text] for text in web_captions(rows).to_pylist()]}
    for kind, name in (("synthetic", "synthetic"), ("further", "further_captions")):
        found = rows[name].to_pylist() if name in rows.column_names else [None] * len(rows)
        columns[kind] = [some or [] for some in found]
    return [dict(zip(KINDS, some, strict=True)) for some in zip(*columns.values(), strict=True)]


def distinct(texts: Iterable[str | None]) -> list[str]:
    """Texts that say something, each once, in order."""
    return list(dict.fromkeys(text for text in texts if text and text.strip()))
