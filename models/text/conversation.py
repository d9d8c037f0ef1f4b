"""Conversations about an image as one text, so that they pass wherever a caption does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Turn", "as_text", "turns_of"]

START = '{"turns": '


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def as_text(turns: Sequence[Turn]) -> str:
    """Return the JSON object of the turns of a conversation."""
    return json.dumps({"turns": turns}, ensure_ascii=False)


def turns_of(text: str) -> list[Turn] | None:
    """Return the turns of what `as_text` made; None for any other text."""
    if not text.startswith(START):
        return None
    try:
        turns = json.loads(text)["turns"]
        return [Turn(str(question), str(answer)) for question, answer in turns] or None
    except (ValueError, TypeError, KeyError):
        return None
