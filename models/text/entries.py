"""Entries: finds the phrases of a list in texts, word by word, as MetaCLIP matches metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import regex

__all__ = ["Entries"]

WORD = regex.compile(r"\w+")


class Entries:
    """A list of phrases.

    Args:
        phrases: The phrases; case and punctuation do not matter.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        found = {tuple(WORD.findall(phrase.lower())) for phrase in phrases}
        self._names = {words: " ".join(words) for words in found if words}
        self._lengths = sorted({len(words) for words in self._names})

    @classmethod
    def load(cls, path: str) -> Entries:
        """Read a text file with a phrase a line.

        Raises:
            ValueError: It has no phrase, or is not UTF-8.
        """
        try:
            entries = cls(Path(path).read_text(encoding="utf-8").splitlines())
        except UnicodeDecodeError as error:
            raise ValueError(f"select.entries: {path} is not UTF-8: {error}") from None
        if not entries._names:
            raise ValueError(f"select.entries: {path} holds no phrase; give one a line")
        return entries

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """The entries that each text mentions, each once, in the order of the text."""
        return [self._of(WORD.findall(text.lower())) for text in texts]

    def _of(self, words: list[str]) -> list[str]:
        found = (
            self._names.get(tuple(words[start : start + length]))
            for start in range(len(words))
            for length in self._lengths
        )
        return list(dict.fromkeys(name for name in found if name is not None))
