"""Captions read from a value: one set of rules for every list, sidecar, metadata file and column.

- A string is one caption. A number is converted to a string.
- A list holds several captions of one image, in order; each becomes its own row. At most 100
  captions, with 65,536 characters in total, are read.
- An object gives the string stored under `raw`, `caption`, `text` or `sentence`.
- Null, NaN, `nan` and a string without a visible character are not captions; the next field or file
  that may hold a caption is tried.
- Any other value (booleans, infinity, bytes in an unknown encoding, objects without a string) is
  skipped and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from stages.sources.encoding import text_of_bytes

__all__ = [
    "MAX_CAPTIONS",
    "NO_CAPTIONS",
    "Captions",
    "captions_of",
    "captions_of_cell",
    "drop_lone_surrogates",
    "first_nonempty",
    "is_blank",
]

MAX_CAPTIONS = 100
"""Number of captions that are read for one image."""

MAX_CHARACTERS = 2**16
"""Total length of the captions of one image; also how much of a text is checked for blankness."""

_KEYS = ("raw", "caption", "text", "sentence")


class Captions(NamedTuple):
    """The captions found in one value.

    Attributes:
        texts: The captions, in order.
        skipped: Description of the first part that was skipped; empty if nothing was.
    """

    texts: tuple[str, ...] = ()
    skipped: str = ""


NO_CAPTIONS = Captions()


def captions_of(value: Any) -> Captions:
    """Return the captions in a JSON or Parquet value."""
    if value is None:
        return NO_CAPTIONS
    if type(value) is str:
        text = drop_lone_surrogates(value)
        skipped = "" if text is value else "half of a character"
        return Captions((), skipped) if is_blank(text) else Captions((text,), skipped)
    if isinstance(value, list | tuple | np.ndarray):
        texts: list[str] = []
        skipped, length = "", 0
        for element in value:
            if isinstance(element, list | tuple | np.ndarray):
                skipped = skipped or "a list in a list"
                continue
            nested = captions_of(element)
            length += sum(map(len, nested.texts))
            if texts and length > MAX_CHARACTERS:
                skipped = (
                    skipped or f"more than {MAX_CHARACTERS:,} characters of captions of one image"
                )
                break
            texts += nested.texts
            skipped = skipped or nested.skipped
            if len(texts) > MAX_CAPTIONS:
                skipped = skipped or f"more than {MAX_CAPTIONS} captions of one image"
                break
        return Captions(tuple(texts[:MAX_CAPTIONS]), skipped)
    if isinstance(value, Mapping):
        for key in _KEYS:
            if isinstance(value.get(key), str):
                return captions_of(value[key])
        return Captions((), "an object")
    return _captions_of_scalar(value)


def _captions_of_scalar(value: Any) -> Captions:
    if isinstance(value, bool | np.bool_):
        return Captions((), "true or false")
    if isinstance(value, int | float | Decimal | np.number):
        try:
            number, digits = float(value), str(value)
        except (OverflowError, ValueError):  # the number has hundreds or thousands of digits
            return Captions((), "a number of very many digits")
        if math.isnan(number):
            return NO_CAPTIONS
        return Captions((), "an infinite number") if math.isinf(number) else Captions((digits,))
    if isinstance(value, bytes):
        text = text_of_bytes(value)
        return Captions((), "bytes in no known encoding") if text is None else captions_of(text)
    return Captions((), f"a {type(value).__name__}")


def captions_of_cell(text: str) -> Captions:
    """Return the captions in a CSV or TSV cell; a list in a cell is written as JSON."""
    if text.startswith('["') and text.rstrip().endswith('"]'):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        return captions_of(value)
    return captions_of(text)


def is_blank(text: str) -> bool:
    """Whether a text has no visible character, or is `nan` in any case."""
    if "!" <= text[:1] <= "~" and text[0] not in "nN":  # fast path for nearly all texts
        return False
    if len(text) <= 8 and text.strip().lower() == "nan":
        return True
    return not any(c.isprintable() and not c.isspace() for c in text[:MAX_CHARACTERS])


def drop_lone_surrogates(text: str) -> str:
    """Remove lone surrogates, which JSON contains when an emoji was cut in half."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text


def first_nonempty(*candidates: Captions) -> Captions:
    """Return the first candidate that has captions.

    Its `skipped` is the first non-empty one among it and the candidates before it.
    """
    if len(candidates) == 1:
        return candidates[0]
    skipped = ""
    for candidate in candidates:
        skipped = skipped or candidate.skipped
        if candidate.texts:
            return Captions(candidate.texts, skipped)
    return Captions((), skipped)
