"""Lists that are one JSON document, such as SBU's, and the streaming of its arrays."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator
from typing import Any

from stages.sources.columns import Finder, keys, text_of
from stages.sources.lists import Record, of_object
from stages.sources.place import Place

__all__ = ["elements", "kind", "pairs", "records"]

_CHUNK = 2**20  # bytes
_LONGEST = 16 * 2**20  # characters of one element, so that a broken file is not read whole
_NUMBER = ("", *"0123456789+-.eE")
_KINDS = {
    "images": "coco",
    "annotations": "coco",
    "image_urls": "sbu",
    "captions": "sbu",
    "": "records",
}


def pairs(place: Place) -> Iterator[Record]:
    """The records of SBU's two parallel arrays; that of the captions may be shorter."""
    arrays = elements(place, "image_urls"), elements(place, "captions")
    for url, caption in itertools.zip_longest(*arrays):
        yield text_of(url), text_of(caption), None, None


def records(place: Place, finder: Finder) -> Iterator[Record]:
    """The records of a document that is one array of objects.

    Raises:
        ValueError: It is none, or no object has a column that is needed.
    """

    def objects() -> Iterator[dict[str, Any]]:
        return (entry if isinstance(entry, dict) else {} for entry in elements(place, ""))

    if next(objects(), None) is None:
        return
    columns = finder.find(keys(objects()))
    for entry in objects():
        yield of_object(entry, columns)


def kind(place: Place) -> str:
    """What a document is, told by the first of its keys that tells.

    Returns:
        coco, sbu, or records for a document that is an array.

    Raises:
        ValueError: It is none of them.
    """
    for key, _ in _walk(place):
        if key in _KINDS:
            return _KINDS[key]
    raise ValueError(
        f"download.source cannot be read as json: {place.path} has neither `images` and "
        "`annotations` (COCO), nor `image_urls` and `captions` (SBU), nor is it an array of objects"
    )


def elements(place: Place, key: str) -> Iterator[Any]:
    """The elements of one array of the document, one at a time.

    Args:
        place: A document that is an object, or an array.
        key: Where the object has the array; empty for a document that is an array.
    """
    for found, value in _walk(place):
        if found == key and value is not _START:
            yield value


_START = object()  # stands before the elements of an array, and for a value that is no array


def _walk(place: Place) -> Iterator[tuple[str, Any]]:
    """Each key of a document, and each element of the arrays that the document holds."""
    with place.read_as("json", ValueError, RecursionError), place.open() as stream:
        yield from _Scanner(stream).walk()


class _Scanner:
    """Reads a document a chunk at a time."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
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
        text = self._decode(bytes(block), self._is_whole)
        self._text = self._text[self._at :] + text
        self._at = 0
        self._read += len(text)

    def _place(self) -> int:
        return self._read - len(self._text) + self._at
