"""What the files beside an image say of it: .txt, .caption and .json.

A file is beside `a.jpg` that is called `a.txt` or `a.jpg.txt`, in any case and in either Unicode
form; beside `0000.image.jpg` also `0000.caption.txt`.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from stages.sources.captions import NOTHING, Captions, captions_of, joined
from stages.sources.columns import (
    CAPTION_COLUMNS,
    UID_COLUMNS,
    URL_COLUMNS,
    note_odd,
    recognise,
    text_of,
    uid_text,
)
from stages.sources.config import Source
from stages.sources.encoding import text_of_bytes
from stages.sources.notices import Notices

__all__ = ["ENDINGS", "LONGEST", "Beside", "Told", "ending_of", "told"]

ENDINGS = ("json", "txt", "caption")
LONGEST = 2**20
"""Bytes that are read of one."""

_ROLES = (
    *(".image", ".img", ".picture", ".photo", ".input"),
    *(".caption", ".captions", ".text", ".txt", ".prompt", ".metadata", ".meta", ".json"),
)
_FIRST = ("captions", "caption")
"""Keys of the .json that count before the texts."""

UNREADABLE = "files beside images whose encoding cannot be told, which are not read"


class Told(NamedTuple):
    """The URL, the captions and the source's own id of an image, as far as anything tells."""

    url: str | None = None
    captions: tuple[str, ...] = ()
    uid: str | None = None


def ending_of(name: str) -> str:
    """json, txt or caption where a file may lie beside an image, else nothing."""
    ending = posixpath.splitext(name)[1].lower().removeprefix(".")
    return ending if ending in ENDINGS else ""


class Beside:
    """Which of some names of one folder lie beside which image.

    Args:
        names: The names.

    Attributes:
        used: Those that were found beside an image.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.used: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}
        named = [(ending, name) for name in names if (ending := ending_of(name))]
        keys = [list(_keys(posixpath.splitext(name)[0])) for _, name in named]
        for rank in range(max(map(len, keys), default=0)):  # the plain names first
            for (ending, name), some in zip(named, keys, strict=True):
                if rank < len(some):
                    self._names.setdefault((ending, some[rank]), name)

    def __bool__(self) -> bool:
        return bool(self._names)

    def of(self, image: str) -> dict[str, str]:
        """The names beside an image by their endings."""
        found: dict[str, str] = {}
        stem = posixpath.splitext(image)[0]
        for key in (*_keys(stem), *_keys(image)):
            for ending in ENDINGS:
                if ending not in found and (ending, key) in self._names:
                    found[ending] = self._names[ending, key]
        self.used.update(found.values())
        return found


def _keys(stem: str) -> Iterator[str]:
    """What a stem matches by: itself, in any case, and without what it says of its role."""
    stem = unicodedata.normalize("NFC", stem)
    yield f"={stem}"
    folded = stem.casefold()
    yield folded
    for role in _ROLES:
        if folded.endswith(role) and folded != role:
            yield folded.removesuffix(role)


def told(beside: Mapping[str, bytes], source: Source, notices: Notices, image: str) -> Told:
    """Read the files beside an image.

    The captions are the first that there are: under the name that the source gives; under
    `captions` or `caption` in the .json, where img2dataset keeps it exactly as it was; in the .txt;
    in the .caption; under another recognised name in the .json.

    Args:
        beside: Their contents by their endings.
        source: What may name keys.
        notices: Where it tells what cannot be read.
        image: The image, for messages.
    """
    record = _object(beside.get("json"), notices, image)
    names = list(record)
    if source.caption_column is not None:
        found = captions_of(record.get(source.caption_column))
    else:
        first = [captions_of(record[key]) for key in _FIRST if key in record]
        texts = [_text(beside.get(ending), notices, image) for ending in ("txt", "caption")]
        recognised = [recognise(names, (key,)) for key in CAPTION_COLUMNS if key not in _FIRST]
        others = [captions_of(record[name]) for name in recognised if name is not None]
        found = joined(*first, *texts, *others)
    note_odd(notices, found, image)
    url = source.url_column or recognise(names, URL_COLUMNS)
    uid = recognise(names, UID_COLUMNS)
    return Told(
        text_of(record.get(url)) or None if url is not None else None,
        found.texts,
        uid_text(record.get(uid)) if uid is not None else None,
    )


def _text(content: bytes | None, notices: Notices, image: str) -> Captions:
    if content is None:
        return NOTHING
    text = text_of_bytes(content)
    if text is None:
        notices.add(UNREADABLE, image)
        return NOTHING
    return captions_of(text.rstrip("\r\n"))


def _object(content: bytes | None, notices: Notices, image: str) -> dict[str, Any]:
    """The JSON object; empty where there is none. An array or a text is one of captions."""
    if content is None:
        return {}
    text = text_of_bytes(content)
    if text is None:
        notices.add(UNREADABLE, image)
        return {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, list | str):
        return {"captions": record}
    if not isinstance(record, dict):
        notices.add("files beside images that hold no JSON object, which are not read", image)
        return {}
    return record
