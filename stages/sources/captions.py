"""What is a caption: one rule for every list, sidecar, metadata file and column.

- A text is one caption; a number is its text.
- A list is several captions of one image, in their order; each is a row of its own, as an image
  that stands on several lines of a list has it. At most 100 are read, of 65,536 characters
  together.
- An object is the text that it has under `raw`, `caption`, `text` or `sentence`.
- Null, NaN, `nan` and a text without a visible character are no caption, so that the next place is
  asked.
- Anything else (true and false, infinity, bytes in no known encoding, objects without a text) is no
  caption either, and is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from stages.sources.encoding import text_of_bytes

__all__ = ["MOST", "NOTHING", "Captions", "captions_of", "is_blank", "joined", "of_cell", "whole"]

MOST = 100
"""Captions of one image that are read."""

LONGEST = 2**16
"""Characters of all captions of one image, and of a text that tell whether it is blank."""

_KEYS = ("raw", "caption", "text", "sentence")


class Captions(NamedTuple):
    """The captions that a value holds.

    Attributes:
        texts: In their order.
        odd: What else it holds, in words; empty where there is nothing else.
    """

    texts: tuple[str, ...] = ()
    odd: str = ""


NOTHING = Captions()


def captions_of(value: Any) -> Captions:
    """The captions that a value of JSON or of Parquet holds."""
    if value is None:
        return NOTHING
    if type(value) is str:
        text = whole(value)
        odd = "" if text is value else "half of a character"
        return Captions((), odd) if is_blank(text) else Captions((text,), odd)
    if isinstance(value, list | tuple | np.ndarray):
        texts: list[str] = []
        odd, length = "", 0
        for one in value:
            if isinstance(one, list | tuple | np.ndarray):
                odd = odd or "a list in a list"
                continue
            found = captions_of(one)
            length += sum(map(len, found.texts))
            if texts and length > LONGEST:
                odd = odd or f"more than {LONGEST:,} characters of captions of one image"
                break
            texts += found.texts
            odd = odd or found.odd
            if len(texts) > MOST:
                odd = odd or f"more than {MOST} captions of one image"
                break
        return Captions(tuple(texts[:MOST]), odd)
    if isinstance(value, Mapping):
        for key in _KEYS:
            if isinstance(value.get(key), str):
                return captions_of(value[key])
        return Captions((), "an object")
    return _of_scalar(value)


def _of_scalar(value: Any) -> Captions:
    if isinstance(value, bool | np.bool_):
        return Captions((), "true or false")
    if isinstance(value, int | float | Decimal | np.number):
        try:
            number, digits = float(value), str(value)
        except (OverflowError, ValueError):  # of hundreds or thousands of digits
            return Captions((), "a number of very many digits")
        if math.isnan(number):
            return NOTHING
        return Captions((), "an infinite number") if math.isinf(number) else Captions((digits,))
    if isinstance(value, bytes):
        text = text_of_bytes(value)
        return Captions((), "bytes in no known encoding") if text is None else captions_of(text)
    return Captions((), f"a {type(value).__name__}")


def of_cell(text: str) -> Captions:
    """The captions of a cell of CSV or TSV, where a list is written as JSON."""
    if text.startswith('["') and text.rstrip().endswith('"]'):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        return captions_of(value)
    return captions_of(text)


def is_blank(text: str) -> bool:
    """Whether a text has no visible character, or is what NaN is written as."""
    if "!" <= text[:1] <= "~" and text[0] not in "nN":  # as nearly all do
        return False
    if len(text) <= 8 and text.strip().lower() == "nan":
        return True
    return not any(c.isprintable() and not c.isspace() for c in text[:LONGEST])


def whole(text: str) -> str:
    """The text without halves of characters, as a cut in an emoji leaves them in JSON."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text


def joined(*places: Captions) -> Captions:
    """The captions of the first place that has one, with what is odd at any before it."""
    if len(places) == 1:
        return places[0]
    odd = ""
    for place in places:
        odd = odd or place.odd
        if place.texts:
            return Captions(place.texts, odd)
    return Captions((), odd)
