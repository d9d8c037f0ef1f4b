"""Which columns of a list, or keys of a record, hold what."""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.sources.config import Source
from stages.sources.row import LONGEST, clean

__all__ = [
    "CAPTION_COLUMNS",
    "FILE_COLUMNS",
    "UID_COLUMNS",
    "URL_COLUMNS",
    "Columns",
    "Finder",
    "keys",
    "recognise",
    "text_of",
    "uid_text",
]

logger = logging.getLogger(__name__)

URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "uri", "link")
CAPTION_COLUMNS = ("caption", "text", "alt_text", "alttext", "alt", "title", "txt")
UID_COLUMNS = ("uid", "id", "sample_id", "key")
FILE_COLUMNS = ("file_name", "filename", "image", "path", "file")
"""Recognised names, in order of preference and in any case."""

_HEAD = 1000  # records that tell the keys
_WIDEST = 2**20  # characters of all keys


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns with the URL, the caption, the source's own id, and the file."""

    url: str | None = None
    caption: str | None = None
    uid: str | None = None
    file: str | None = None

    def wanted(self) -> list[str]:
        """The names, each once."""
        names = (self.url, self.caption, self.uid, self.file)
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class Finder:
    """Finds the columns of a list among those it has.

    Attributes:
        path: The list, for messages.
        source: What may name columns.
        needs: url or file, where the list is of no use without such a column.
        without: A column that is none of these.
    """

    path: str
    source: Source
    needs: Literal["url", "file"] | None = "url"
    without: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether the source names a column, so that there must be names."""
        return (self.source.url_column or self.source.caption_column) is not None

    def find(self, columns: Sequence[str]) -> Columns:
        """The columns among those with these names.

        Raises:
            ValueError: A named column is missing, or the needed one is not recognised.
        """
        for field in ("url_column", "caption_column"):
            name = getattr(self.source, field)
            if name is not None and name not in columns:
                close = difflib.get_close_matches(name.lower(), [c.lower() for c in columns], n=1)
                meant = [c for c in columns if close and c.lower() == close[0]]
                hint = f"; did you mean {meant[0]!r}?" if meant else ""
                raise ValueError(
                    f"download.{field}: {self.path} has no column {name!r}, it has "
                    f"{_listed(columns)}{hint}"
                )
        others = [name for name in columns if name != self.without]
        url = self.source.url_column or recognise(others, URL_COLUMNS)
        caption = self.source.caption_column or recognise(others, CAPTION_COLUMNS)
        file = recognise(others, FILE_COLUMNS) if self.needs == "file" else None
        if self.needs == "url" and url is None:
            raise ValueError(
                f"download.url_column: no column of {self.path} has a name known for URLs, it has "
                f"{_listed(columns)}; set download.url_column"
            )
        if self.needs == "file" and file is None:
            raise ValueError(
                f"download.source: {self.path} needs a column `file_name`, it has "
                f"{_listed(columns)}"
            )
        for name in {url, caption, file} - {None}:
            if columns.count(name) > 1:
                raise ValueError(
                    f"download.source: {self.path} has more than one column {name!r}, it has "
                    f"{_listed(columns)}; give each a name of its own"
                )
        if caption is None and len(columns) > 1:
            logger.warning(
                "download.caption_column: no column of %s has a name known for captions, it has "
                "%s; its rows have no captions",
                self.path,
                _listed(columns),
            )
        return Columns(
            url=url,
            caption=None if caption == url else caption,
            uid=recognise(others, UID_COLUMNS),
            file=file,
        )


def keys(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of the first thousand records, each once, since a record may leave out a key."""
    found: dict[str, None] = {}
    size = 0
    for record in itertools.islice(records, _HEAD):
        for key in record:
            if key not in found:
                found[key] = None
                size += len(key)
        if size > _WIDEST:
            break
    return list(found)


def recognise(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first column that has one of the names, the names in order of preference."""
    lowered = {column.strip().lower().replace(" ", "_"): column for column in reversed(columns)}
    return next((lowered[name] for name in names if name in lowered), None)


def text_of(value: Any) -> str | None:
    """A text of a JSON record, of which no more is kept than tells that it is too long."""
    return clean(value[: LONGEST + 1]) if isinstance(value, str) else None


def uid_text(value: Any) -> str | None:
    """The id that a JSON record gives, as text, or nothing where it is no text or whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))
