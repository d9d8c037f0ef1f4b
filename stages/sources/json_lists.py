"""Reads lists that are one JSON document, streaming the elements of its arrays."""

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
    count_skipped,
    keys,
    recognise,
    text_of,
    uid_text,
)
from stages.sources.source_files import SourceFile

__all__ = ["elements", "karpathy", "kind", "pairs", "records"]

_CHUNK = 2**20  # bytes
_LONGEST = 16 * 2**20  # characters per element, so that a broken file is not read into memory
_NUMBER = ("", *"0123456789+-.eE")
_SBU = ("image_urls", "captions")


def pairs(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Yield the records of SBU's two parallel arrays; the array of captions may be shorter."""
    arrays = elements(source_file, "image_urls"), elements(source_file, "captions")
    for number, (url, caption) in enumerate(itertools.zip_longest(*arrays), 1):
        captions = captions_of(caption)
        count_skipped(source_file.notices, captions, f"{source_file.path}:{number}")
        yield Record(number=number, url=text_of(url) or None, captions=captions.texts)


def records(source_file: SourceFile, finder: Finder, key: str = "") -> Iterator[Record]:
    """Yield the records of an array of objects, as in BLIP's, LLaVA's and RedCaps' files.

    Args:
        source_file: The document.
        finder: Finds the keys that hold URLs, captions and files.
        key: Key of the array; see `elements`.

    Raises:
        ValueError: The document is broken, or no object has a key that is needed.
    """

    def objects() -> Iterator[dict[str, Any]]:
        return (entry for entry in elements(source_file, key) if isinstance(entry, dict))

    names = keys(objects(), finder.named)
    if names:
        finder.find(names, is_all=False)
    has_captions = False
    for number, entry in enumerate(elements(source_file, key), 1):
        record = finder.record(number, entry)
        has_captions = has_captions or bool(record.captions) or record.label is not None
        yield record
    if names and not has_captions:
        finder.no_captions(names)


def karpathy(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Yield the records of Karpathy's splits (arXiv:1412.2306) that are in the source's `split`."""
    wanted = finder.source.split
    splits = (wanted,) if isinstance(wanted, str) else wanted
    for number, entry in enumerate(elements(source_file, "images"), 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            yield Record(number=number, why="has no `filename`")
            continue
        if splits is not None and entry.get("split") not in splits:
            continue
        captions = captions_of(entry.get("sentences"))
        count_skipped(source_file.notices, captions, f"{source_file.path}:{number}")
        folder = entry.get("filepath")
        name = f"{folder}/{entry['filename']}" if isinstance(folder, str) and folder else None
        ids = (entry.get(key) for key in ("cocoid", "imgid"))
        yield Record(
            number=number,
            file=text_of(name or entry["filename"]),
            captions=captions.texts,
            uid=next(filter(None, map(uid_text, ids)), None),
        )


def kind(source_file: SourceFile) -> tuple[str, str]:
    """Detect the format of a document from its arrays.

    Returns:
        coco, karpathy, sbu or records, and the key of the array that holds the records.

    Raises:
        ValueError: The document has none of these formats.
    """
    if "document" not in source_file.known:
        source_file.known["document"] = _kind(source_file)
    result: tuple[str, str] = source_file.known["document"]
    return result


def _kind(source_file: SourceFile) -> tuple[str, str]:
    examined: set[str] = set()
    for key, value in _walk(source_file):
        if key == "":
            return "records", ""
        if key in _SBU:
            return "sbu", ""
        if value is _START or key in examined:
            continue
        examined.add(key)
        if not isinstance(value, dict):
            continue
        if key == "images":
            return ("karpathy" if "sentences" in value else "coco"), key
        if _is_record(value):
            return "records", key
        if key == "annotations":
            return "coco", key
    if examined & {"images", "annotations"} or _keys(source_file) & {"images", "annotations"}:
        return "coco", ""
    raise ValueError(
        f"download.source cannot be read as json: {source_file.path} must have `images` and "
        "`annotations` (COCO), `images` with `sentences` (Karpathy), `image_urls` and `captions` "
        "(SBU), or an array of objects, which may be the value of a key"
    )


def _is_record(value: Mapping[str, Any]) -> bool:
    """Whether an object names an image and has a caption."""
    names = list(value)
    return (
        recognise(names, (*URL_COLUMNS, *FILE_COLUMNS)) is not None
        and recognise(names, CAPTION_COLUMNS) is not None
    )


def _keys(source_file: SourceFile) -> set[str]:
    return {key for key, value in _walk(source_file) if value is _START}


def elements(source_file: SourceFile, key: str) -> Iterator[Any]:
    """Yield the elements of one array of the document, one at a time.

    Args:
        source_file: A document that is an object or an array.
        key: Key of the array in the object; empty for a document that is an array.
    """
    for owner, value in _walk(source_file):
        if owner == key and value is not _START:
            yield value


_START = object()  # comes before the elements of an array, and in place of any other value


def _walk(source_file: SourceFile) -> Iterator[tuple[str, Any]]:
    """Yield each key of a document with `_START`, then with each element if it is an array."""
    with source_file.read_as("json", ValueError, RecursionError), source_file.open() as stream:
        yield from _Scanner(stream).walk()


class _Scanner:
    """Parses a document one chunk at a time."""

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
            raise ValueError("it must be an object or an array; name JSON Lines .jsonl")
        if self._peek():
            raise ValueError(
                f"text follows its end, at character {self._position()}; name JSON Lines .jsonl"
            )

    def _object(self) -> Iterator[tuple[str, Any]]:
        if self._peek() == "}":
            self._next()
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise ValueError(f"a key is not a string at character {self._position()}")
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
        """Parse the next value."""
        self._peek()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
                # A number that continues in the next chunk parses here too.
                if self._is_whole or self._text[end : end + 1] not in _NUMBER:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._is_whole:
                    where = self._read - len(self._text) + error.pos
                    raise ValueError(f"{error.msg} at character {where}") from None
            if len(self._text) - self._at > _LONGEST:
                raise ValueError(f"no value ends within 16 MiB of character {self._position()}")
            self._more(max(_CHUNK, len(self._text) - self._at))

    def _expect(self, wanted: str) -> str:
        character = self._next()
        if character not in wanted or not character:
            shown = repr(character) if character else "the end of the file"
            raise ValueError(f"{shown} instead of {wanted[-1]!r} at character {self._position()}")
        return character

    def _next(self) -> str:
        character = self._peek()
        self._at += len(character)
        return character

    def _peek(self) -> str:
        """Return the next non-space character without consuming it; empty at the end."""
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

    def _position(self) -> int:
        return self._read - len(self._text) + self._at
