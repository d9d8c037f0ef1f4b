"""Splits a text into sentences by its punctuation."""

from __future__ import annotations

import re

__all__ = ["MAX_SENTENCES", "split_sentences"]

MAX_SENTENCES = 100
"""The most parts of a text; the last part of a longer text contains the rest."""

CLOSING = "\"')\\]}\u00bb\u2019\u201d\u300d\u300f\u300b\uff09"
SPACED = ".!?\u2026\u061f\u06d4\u0964\u0965\u0589\u1362\u1367\u1368\u17d4\u17d5\u104a\u104b"
"""Marks that end a sentence if a space follows: Latin, Arabic, Urdu, Devanagari, Armenian,
Ethiopic, Khmer and Burmese."""
UNSPACED = "\u3002\uff01\uff1f\uff61"
"""Marks of Chinese and Japanese, after which no space is needed."""
END = re.compile(
    rf"[{UNSPACED}][{SPACED}{UNSPACED}]*[{CLOSING}]*\s*"
    rf"|(?<![{SPACED}])[{SPACED}]+[{CLOSING}]*\s+"
    r"|\n\s*\n\s*"
    r"|\n\s*(?=[-*\u2022\u2013]\s|\d{1,2}[.)]\s)"
)
TITLES = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "st", "mt", "ft", "vs", "approx", "ca", "cf", "e.g"),
        *("i.e", "eg", "ie", "al", "gen", "col", "sgt", "capt", "lt", "sen", "rep", "gov", "rev"),
        *("hon", "pres", "dept", "u.s", "u.k", "u.s.a", "d.c"),
    ]
)
"""Abbreviations that do not end a sentence."""
BEFORE_NUMBERS = frozenset(["no", "nr", "nos", "fig", "figs", "vol", "pp", "ch", "pt"])
"""Abbreviations that do not end a sentence if a digit follows."""
ENDINGS = frozenset(
    ["a.m", "p.m", "am", "pm", "etc", "inc", "ltd", "co", "corp", "jr", "sr", "ave", "blvd"]
)
"""Abbreviations that do not end a sentence if a lower-case letter follows."""
WORD = re.compile(r"[^\W_](?:[^\s(\[{\"']*[^\W_])?$")


def split_sentences(text: str, most: int = MAX_SENTENCES) -> list[str]:
    """Split a text into sentences.

    A sentence ends at a full stop, exclamation mark or question mark before a space, at the marks
    of Chinese and Japanese, at an empty line, or before an item of a list. Common English
    abbreviations and initials do not end a sentence. A part without letters belongs to the sentence
    after it, or at the end of the text to the sentence before it.

    Args:
        text: Any text.
        most: The most parts, at least 1.

    Returns:
        The parts in order, each with the space after it; joined, they are the text. The list is
        empty for an empty text.
    """
    parts: list[str] = []
    start = seen = 0
    has_letter = False
    for end in END.finditer(text):
        if len(parts) >= most - 1:
            break
        has_letter = has_letter or any(map(str.isalpha, text[seen : end.end()]))
        seen = end.end()
        if has_letter and not _goes_on(text, end):
            parts.append(text[start:seen])
            start, has_letter = seen, False
    rest = text[start:]
    if parts and not any(map(str.isalpha, rest)):
        parts[-1] += rest
    elif rest:
        parts.append(rest)
    return parts


def _goes_on(text: str, end: re.Match[str]) -> bool:
    """Whether an apparent end of a sentence is only the full stop of an abbreviation."""
    stop = end[0].rstrip()
    if stop != "." or end[0].count("\n") > 1:
        return False
    match = WORD.search(text, max(0, end.start() - 16), end.start())
    if match is None:
        return False
    word, following = match[0].lower(), text[end.end() : end.end() + 1]
    return (
        word in TITLES
        or (len(word) == 1 and match[0].isupper() and word != "i")
        or (word in BEFORE_NUMBERS and following.isdigit())
        or (word in ENDINGS and following.islower())
    )
