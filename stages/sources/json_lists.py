"""Lists that are one JSON document, and the streaming of its arrays."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from stages.sources.captions import captions_of
from stages.sources.columns import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    URL_COLUMNS,
    Finder,
    Record,
    keys,
    note_odd,
    recognise,
    text_of,
    uid_text,
)
from stages.sources.source_files import SourceFile

__all__ = ["elements", "karpathy", "kind", "pairs", "records"]

_CHUNK = 2**20  # bytes
_LONGEST = 16 * 2**20  # characters of one element, so that a broken file is not read whole
_NUMBER = ("", *"0123456789+-.eE")
_SBU = ("image_urls", "captions")


def pairs(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """The records of SBU's two parallel arrays; that of the captions may be shorter."""
    arrays = elements(place, "image_urls"), elements(place, "captions")
    for number, (url, caption) in enumerate(itertools.zip_longest(*arrays), 1):
        found = captions_of(caption)
        note_odd(place.notices, found, f"{place.path}:{number}")
        yield Record(number=number, url=text_of(url) or None, captions=found.texts)


def records(place: SourceFile, finder: Finder, key: str = "") -> Iterator[Record]:
    """The records of an array of objects: of BLIP, LLaVA, RedCaps, or others like them.

    Args:
        place: A document.
        finder: Finds what they hold.
        key: See `elements`.

    Raises:
        ValueError: It is none, or no object has a key that is needed.
    """

    def objects() -> Iterator[dict[str, Any]]:
        return (entry for entry in elements(place, key) if isinstance(entry, dict))

    names = keys(objects(), finder.named)
    if names:
        finder.find(names, is_all=False)
    is_told = False
    for number, entry in enumerate(elements(place, key), 1):
        record = finder.record(number, entry)
        is_told = is_told or bool(record.captions) or record.label is not None
        yield record
    if names and not is_told:
        finder.no_captions(names)


def karpathy(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """The images of Karpathy's splits (arXiv:1412.2306), those of the source's split."""
    wanted = finder.source.split
    splits = (wanted,) if isinstance(wanted, str) else wanted
    for number, entry in enumerate(elements(place, "images"), 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            yield Record(number=number, why="has no `filename`")
            continue
        if splits is not None and entry.get("split") not in splits:
            continue
        found = captions_of(entry.get("sentences"))
        note_odd(place.notices, found, f"{place.path}:{number}")
        folder = entry.get("filepath")
        name = f"{folder}/{entry['filename']}" if isinstance(folder, str) and folder else None
        ids = (entry.get(key) for key in ("cocoid", "imgid"))
        yield Record(
            number=number,
            file=text_of(name or entry["filename"]),
            captions=found.texts,
            uid=next(filter(None, map(uid_text, ids)), None),
        )


def kind(place: SourceFile) -> tuple[str, str]:
    """What a document is, told by the first of its arrays that tells.

    Returns:
        coco, karpathy, sbu, or records, and the key of the array that has the records.

    Raises:
        ValueError: It is none of them.
    """
    if "document" not in place.known:
        place.known["document"] = _kind(place)
    found: tuple[str, str] = place.known["document"]
    return found


def _kind(place: SourceFile) -> tuple[str, str]:
    asked: set[str] = set()
    for key, value in _walk(place):
        if key == "":
            return "records", ""
        if key in _SBU:
            return "sbu", ""
        if value is _START or key in asked:
            continue
        asked.add(key)
        if not isinstance(value, dict):
            continue
        if key == "images":
            return ("karpathy" if "sentences" in value else "coco"), key
        if _is_record(value):
            return "records", key
        if key == "annotations":
            return "coco", key
    if asked & {"images", "annotations"} or _keys(place) & {"images", "annotations"}:
        return "coco", ""
    raise ValueError(
        f"download.source cannot be read as json: {place.path} has neither `images` and "
        "`annotations` (COCO), nor `images` with `sentences` (Karpathy), nor `image_urls` and "
        "`captions` (SBU), nor is it an array of objects, or an object that holds one"
    )


def _is_record(value: Mapping[str, Any]) -> bool:
    """Whether an object names an image and has a caption."""
    names = list(value)
    return (
        recognise(names, (*URL_COLUMNS, *FILE_COLUMNS)) is not None
        and recognise(names, CAPTION_COLUMNS) is not None
    )


def _keys(place: SourceFile) -> set[str]:
    return {key for key, value in _walk(place) if value is _START}


def elements(place: SourceFile, key: str) -> Iterator[Any]:
    """The elements of one array of the document, one at a time.

    Args:
        place: A document that is an object, or an array.
        key: Where the object has the array; empty for a document that is an array.
    """
    for found, value in _walk(place):
        if found == key and value is not _START:
            yield value


_START = object()  # stands before the elements of an array, and for a value that is no array


def _walk(place: SourceFile) -> Iterator[tuple[str, Any]]:
    """Each key of a document, and each element of the arrays that the document holds."""
    with place.read_as("json", ValueError, RecursionError), place.open() as stream:
        yield from _Scanner(stream).walk()


class _Scanner:
    """Reads a document a chunk at a time."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("strict").decode
        self._lines = 0
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._read = 0
        self._is_whole = False

    def walk(self) -> Iterator[tuple[str, Any]]:
        start = self._next()
        if start == "[":
            yield "", _START
            yield from (("", value) for value in self._array())
        elif start == "{":
            yield from self._object()
        else:
            raise ValueError("it must be an object or an array; JSON Lines are named .jsonl")
        if self._peek():
            raise ValueError(
                f"more follows its end, at character {self._place()}; JSON Lines are named .jsonl"
            )

    def _object(self) -> Iterator[tuple[str, Any]]:
        if self._peek() == "}":
            self._next()
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise ValueError(f"a key is no text at character {self._place()}")
            self._expect(":")
            yield key, _START
            if self._peek() == "[":
                self._next()
                for value in self._array():
                    yield key, value
            else:
                self._value()
            if self._expect(",}") == "}":
                return

    def _array(self) -> Iterator[Any]:
        if self._peek() == "]":
            self._next()
            return
        while True:
            yield self._value()
            if self._expect(",]") == "]":
                return

    def _value(self) -> Any:
        """The value that comes next, parsed whole."""
        self._peek()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
                # A number cut by the end of a chunk is a number too.
                if self._is_whole or self._text[end : end + 1] not in _NUMBER:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._is_whole:
                    where = self._read - len(self._text) + error.pos
                    raise ValueError(f"{error.msg} at character {where}") from None
            if len(self._text) - self._at > _LONGEST:
                raise ValueError(f"no value ends within 16 MiB of character {self._place()}")
            self._more(max(_CHUNK, len(self._text) - self._at))

    def _expect(self, wanted: str) -> str:
        found = self._next()
        if found not in wanted or not found:
            what = repr(found) if found else "the end of the file"
            raise ValueError(f"{what} in place of {wanted[-1]!r} at character {self._place()}")
        return found

    def _next(self) -> str:
        found = self._peek()
        self._at += len(found)
        return found

    def _peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_whole:
                return ""
            self._more(_CHUNK)

    def _more(self, size: int) -> None:
        block = self._stream.read(size)
        self._is_whole = not block
        try:
            text = self._decode(bytes(block), self._is_whole)
        except UnicodeDecodeError as error:
            line = self._lines + bytes(block).count(b"\n", 0, error.start) + 1
            raise UnicodeError(f"line {line} is not UTF-8; save it as UTF-8") from None
        self._lines += text.count("\n")
        self._text = self._text[self._at :] + text
        self._at = 0
        self._read += len(text)

    def _place(self) -> int:
        return self._read - len(self._text) + self._at
