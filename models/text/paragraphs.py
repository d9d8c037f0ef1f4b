"""Paragraphs that a model wrote, cleaned by rules: MiniGPT-4's second stage (arXiv:2304.10592).

The paper asks ChatGPT to remove repeating sentences, meaningless characters and what is not
English, and to rewrite incomplete sentences. Rules cannot rewrite: they drop instead.
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
"""A sentence of fewer words says too little for its language to be told."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its own end."""
    return SENTENCE.findall(" ".join(text.split()))


def clean_paragraph(text: str, is_english: Callable[[str], bool]) -> str:
    """Drop what a paragraph should not hold.

    A sentence is dropped if it says again what another said before it (case, punctuation and
    spacing apart), is not English, apologises for a mistake, or has no words. The last one is
    dropped if it is unfinished, unless it is the only one: a caption of one phrase has no full
    stop. Meaningless characters go from within sentences.

    Args:
        text: The paragraph.
        is_english: Asked of sentences of four words and more.

    Returns:
        The sentences that are left, joined by spaces; an empty string where none is.
    """
    found = sentences(" ".join(MEANINGLESS.sub(" ", text).split()))
    if len(found) > 1 and not FINISHED.search(found[-1]):
        found.pop()
    kept: list[str] = []
    said: set[str] = set()
    for sentence in found:
        words, key = WORD.findall(sentence), caption_key(sentence)
        if not words or key in said or MISTAKE.search(sentence):
            continue
        if len(words) >= MIN_WORDS and not is_english(sentence):
            continue
        said.add(key)
        kept.append(sentence)
    return " ".join(kept)
