"""Captions as BLIP reads them (arXiv:2201.12086): training, filter and evaluation alike."""

from __future__ import annotations

import re

__all__ = ["UNREAD", "pre_caption"]

UNREAD = re.compile(r'[.!"()*#:;~\s]+')
"""The marks that BLIP's released code takes away, and whitespace."""


def pre_caption(caption: str) -> str:
    """A caption in lower case, BLIP's marks and runs of whitespace as single spaces.

    Preparing a prepared caption changes nothing. BLIP's training also cuts to 30 words. Nothing is
    cut here: the reader's limit in tokens, which BLIP has besides, alone says how much is read.

    Returns:
        The text; empty where the caption is nothing but such marks.
    """
    return UNREAD.sub(" ", caption.lower()).strip()
