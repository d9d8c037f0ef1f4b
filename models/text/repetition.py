"""Detects texts in which a model repeats itself until it is cut off."""

from __future__ import annotations

from models.text.captions import script_words

__all__ = ["repeats_at_end"]

MIN_WORDS = 16
"""Minimum number of repeated words; a shorter repetition can be intended, such as "ha ha ha"."""

MIN_TIMES = 4
"""Minimum number of repetitions; a refrain is repeated two or three times."""


def repeats_at_end(text: str) -> bool:
    """Whether a text ends with the same words repeated.

    The words must occur at least four times in a row, of which the last may be incomplete, and make
    up at least 16 words. In scripts without spaces, such as Chinese, each character is a word.
    """
    words = script_words(text)
    for period in range(1, len(words) // MIN_TIMES + 1):
        same = 0
        while same + period < len(words) and words[-1 - same] == words[-1 - same - period]:
            same += 1
        if same + period >= max(MIN_WORDS, MIN_TIMES * period):
            return True
    return False
