"""Texts of a model that says the same over and over until it is cut off."""

from __future__ import annotations

from models.text.captions import script_words

__all__ = ["repeats_at_end"]

MIN_WORDS = 16
"""A shorter repetition may be meant: ha ha ha."""

MIN_TIMES = 4
"""As above: a refrain comes back twice or three times."""


def repeats_at_end(text: str) -> bool:
    """Whether a text ends in the same words said over and over.

    They are said at least four times in a row, the last time perhaps in part, and make up at least
    16 words. In scripts without blanks between words, such as Chinese, each character is a word.
    """
    words = script_words(text)
    for period in range(1, len(words) // MIN_TIMES + 1):
        same = 0
        while same + period < len(words) and words[-1 - same] == words[-1 - same - period]:
            same += 1
        if same + period >= max(MIN_WORDS, MIN_TIMES * period):
            return True
    return False
