"""Measures of text quality, from MassiveText's heuristics (Gopher, arXiv:2112.11446, A.1)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = ["ProseMeasures", "measure_prose"]

WORD = re.compile(r"\S+")
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "*", "-", "\u2013")
TOP = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProseMeasures:
    """The measures of MassiveText's filters; shares are from 0 to 1, and 0 for an empty text.

    Attributes:
        words: Number of words, separated by whitespace.
        word_length: Mean length of words, in characters.
        symbols: Hash signs and ellipses per word.
        bullets: Share of lines that begin with a bullet.
        ellipses: Share of lines that end with an ellipsis.
        alphabetic: Share of words with a letter.
        stop_words: Number of distinct words that occur, of "the be to of and that have with".
        duplicate_lines: Share of lines that repeat an earlier one.
        duplicate_line_characters: Share of characters in such lines.
        top_ngrams: For n = 2, 3, 4: share of characters in the most frequent n-gram.
        duplicate_ngrams: For n = 5 to 10: share of characters in n-grams that repeat an earlier
            one; overlaps count once.
    """

    words: int
    word_length: float
    symbols: float
    bullets: float
    ellipses: float
    alphabetic: float
    stop_words: int
    duplicate_lines: float
    duplicate_line_characters: float
    top_ngrams: tuple[float, ...]
    duplicate_ngrams: tuple[float, ...]


def measure_prose(lines: Sequence[str]) -> ProseMeasures:
    """Measure a text, given as lines or paragraphs."""
    lines = [line.strip() for line in lines if line.strip()]
    words = [word for line in lines for word in WORD.findall(line)]
    characters = sum(map(len, words))
    text = "\n".join(lines)
    dots = text.count("...") + text.count("\u2026")
    return ProseMeasures(
        words=len(words),
        word_length=_share(characters, len(words)),
        symbols=_share(text.count("#") + dots, len(words)),
        bullets=_share(sum(line.startswith(BULLETS) for line in lines), len(lines)),
        ellipses=_share(sum(line.endswith(("...", "\u2026")) for line in lines), len(lines)),
        alphabetic=_share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        stop_words=len(STOP_WORDS.intersection(word.lower().strip(".,;:!?") for word in words)),
        duplicate_lines=_share(len(lines) - len(set(lines)), len(lines)),
        duplicate_line_characters=_share(
            sum(map(len, lines)) - sum(map(len, set(lines))), sum(map(len, lines))
        ),
        top_ngrams=tuple(_share(_top(words, n), characters) for n in TOP),
        duplicate_ngrams=tuple(_share(_repeated(words, n), characters) for n in DUPLICATE),
    )


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0


def _top(words: Sequence[str], n: int) -> int:
    """Count the characters in all occurrences of the most frequent n-gram; 0 if none repeats."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    highest = max(counts.values(), default=0)
    if highest < 2:
        return 0
    longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == highest)
    return min(longest * highest, sum(map(len, words)))


def _repeated(words: Sequence[str], n: int) -> int:
    """Count the characters in n-grams that repeat an earlier one; each word counts once."""
    seen: set[Hashable] = set()
    characters = start = 0
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            characters += sum(map(len, words[max(i, start) : i + n]))
            start = i + n
        seen.add(gram)
    return characters
