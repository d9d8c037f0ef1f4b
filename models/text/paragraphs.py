"""Cleans generated paragraphs by rules, after MiniGPT-4's second stage (arXiv:2304.10592).

The paper asks ChatGPT to remove repeated sentences, meaningless characters and text that is not
English, and to rewrite incomplete sentences. Rules cannot rewrite, so they drop such sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from models.text.captions import WORD, caption_key

__all__ = ["clean_paragraph", "sentences"]

SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"')\]\u201d\u2019]*(?=\s|$)|$)")
FINISHED = re.compile(r"[.!?][\"')\]\u201d\u2019]*$")
MEANINGLESS = re.compile(
    r"#{2,}|[\ufffd\x00-\x08\x0b-\x1f\x7f-\x9f]|(?<!\S)[^\w\s\"'(.!?]{2,}(?!\S)"
)
MISTAKE = re.compile(
    r"\bI(?:'m| am) sorry\b|\bI apologi[sz]e\b|\bI made a mistake\b", re.IGNORECASE
)
MIN_WORDS = 4
"""The language of sentences with fewer words is not checked, since it cannot be detected."""


def sentences(text: str) -> list[str]:
    """Split a text into sentences, with their final punctuation."""
    return SENTENCE.findall(" ".join(text.split()))


def clean_paragraph(text: str, is_english: Callable[[str], bool]) -> str:
    """Drop bad sentences and meaningless characters from a paragraph.

    A sentence is dropped if it repeats an earlier one (ignoring case, punctuation and spacing), is
    not English, apologises for a mistake, or has no words. An unfinished last sentence is dropped
    too, unless it is the only one, since a caption of one phrase has no full stop.

    Args:
        text: The paragraph.
        is_english: Whether a sentence is English; called for sentences of at least four words.

    Returns:
        The remaining sentences, joined by spaces; possibly an empty string.
    """
    candidates = sentences(" ".join(MEANINGLESS.sub(" ", text).split()))
    if len(candidates) > 1 and not FINISHED.search(candidates[-1]):
        candidates.pop()
    kept: list[str] = []
    keys: set[str] = set()
    for sentence in candidates:
        words, key = WORD.findall(sentence), caption_key(sentence)
        if not words or key in keys or MISTAKE.search(sentence):
            continue
        if len(words) >= MIN_WORDS and not is_english(sentence):
            continue
        keys.add(key)
        kept.append(sentence)
    return " ".join(kept)
