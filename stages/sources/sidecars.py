"""Reads sidecar files, which hold the captions of an image: .txt, .caption and .json.

The sidecars of `a.jpg` are `a.txt` and `a.jpg.txt`, in any case and in either Unicode form; those
of `0000.image.jpg` also include `0000.caption.txt`.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from stages.sources.captions import NO_CAPTIONS, Captions, captions_of, first_nonempty
from stages.sources.columns import (
    CAPTION_COLUMNS,
    UID_COLUMNS,
    URL_COLUMNS,
    count_skipped,
    recognise,
    text_of,
    uid_text,
)
from stages.sources.config import Source
from stages.sources.encoding import text_of_bytes
from stages.sources.notices import Notices

__all__ = ["ENDINGS", "LONGEST", "ImageText", "Sidecars", "ending_of", "read_sidecars"]

ENDINGS = ("json", "txt", "caption")
LONGEST = 2**20
"""Maximum number of bytes read from a sidecar."""

_ROLES = (
    *(".image", ".img", ".picture", ".photo", ".input"),
    *(".caption", ".captions", ".text", ".txt", ".prompt", ".metadata", ".meta", ".json"),
)
_FIRST = ("captions", "caption")
"""Keys of the .json that are preferred to the .txt and .caption files."""

UNREADABLE = "files beside images in an unknown encoding, which are not read"


class ImageText(NamedTuple):
    """The URL, the captions and the source's own id of an image, as far as they are known."""

    url: str | None = None
    captions: tuple[str, ...] = ()
    uid: str | None = None


def ending_of(name: str) -> str:
    """Return json, txt or caption if a file may be a sidecar, else an empty string."""
    ending = posixpath.splitext(name)[1].lower().removeprefix(".")
    return ending if ending in ENDINGS else ""


class Sidecars:
    """Finds the sidecars of an image among the file names of one folder.

    Args:
        names: The file names.

    Attributes:
        used: Names that turned out to be the sidecar of an image.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.used: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}
        candidates = [(ending, name) for name in names if (ending := ending_of(name))]
        keys = [list(_keys(posixpath.splitext(name)[0])) for _, name in candidates]
        for rank in range(max(map(len, keys), default=0)):  # exact names take precedence
            for (ending, name), names_keys in zip(candidates, keys, strict=True):
                if rank < len(names_keys):
                    self._names.setdefault((ending, names_keys[rank]), name)

    def __bool__(self) -> bool:
        return bool(self._names)

    def of(self, image: str) -> dict[str, str]:
        """Return the names of an image's sidecars by ending."""
        sidecars: dict[str, str] = {}
        stem = posixpath.splitext(image)[0]
        for key in (*_keys(stem), *_keys(image)):
            for ending in ENDINGS:
                if ending not in sidecars and (ending, key) in self._names:
                    sidecars[ending] = self._names[ending, key]
        self.used.update(sidecars.values())
        return sidecars


def _keys(stem: str) -> Iterator[str]:
    """Yield the keys a stem matches by: itself, itself in lower case, and without a role suffix."""
    stem = unicodedata.normalize("NFC", stem)
    yield f"={stem}"
    folded = stem.casefold()
    yield folded
    for role in _ROLES:
        if folded.endswith(role) and folded != role:
            yield folded.removesuffix(role)


def read_sidecars(
    contents: Mapping[str, bytes], source: Source, notices: Notices, image: str
) -> ImageText:
    """Read the sidecars of an image.

    If the source names a caption column, the captions are under that key of the .json. Otherwise
    they come from the first of these that has any: `captions` or `caption` in the .json (where
    img2dataset keeps the unchanged caption), the .txt, the .caption, another recognised key of the
    .json.

    Args:
        contents: Contents of the sidecars by ending.
        source: The source, which may name keys.
        notices: Collects warnings about unreadable files.
        image: Path of the image, for messages.
    """
    record = _object(contents.get("json"), notices, image)
    names = list(record)
    if source.caption_column is not None:
        captions = captions_of(record.get(source.caption_column))
    else:
        preferred = [captions_of(record[key]) for key in _FIRST if key in record]
        texts = [_text(contents.get(ending), notices, image) for ending in ("txt", "caption")]
        recognised = [recognise(names, (key,)) for key in CAPTION_COLUMNS if key not in _FIRST]
        others = [captions_of(record[name]) for name in recognised if name is not None]
        captions = first_nonempty(*preferred, *texts, *others)
    count_skipped(notices, captions, image)
    url = source.url_column or recognise(names, URL_COLUMNS)
    uid = recognise(names, UID_COLUMNS)
    return ImageText(
        text_of(record.get(url)) or None if url is not None else None,
        captions.texts,
        uid_text(record.get(uid)) if uid is not None else None,
    )


def _text(content: bytes | None, notices: Notices, image: str) -> Captions:
    if content is None:
        return NO_CAPTIONS
    text = text_of_bytes(content)
    if text is None:
        notices.add(UNREADABLE, image)
        return NO_CAPTIONS
    return captions_of(text.rstrip("\r\n"))


def _object(content: bytes | None, notices: Notices, image: str) -> dict[str, Any]:
    """Return the JSON object, or an empty one; an array or a string is taken as `captions`."""
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
        notices.add("files beside images without a JSON object, which are not read", image)
        return {}
    return record
