"""BLIP's text preparation (arXiv:2201.12086), used in training, filter and evaluation."""

from __future__ import annotations

import re

__all__ = ["UNREAD", "pre_caption"]

UNREAD = re.compile(r'[.!"()*#:;~\s]+')
"""The characters that BLIP's released code removes, and whitespace."""


def pre_caption(caption: str) -> str:
    """Prepare a caption for BLIP: lower case, with removed characters replaced by single spaces.

    Applying it twice changes nothing more. BLIP's training also cuts captions to 30 words; here
    only the limit in tokens, which BLIP has too, cuts them.

    Returns:
        The text; empty if the caption has no other characters.
    """
    return UNREAD.sub(" ", caption.lower()).strip()
