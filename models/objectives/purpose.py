"""What a model is trained to be: words of the settings that its own module knows, too.

A manifest is validated with these words, so this module imports no torch.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Goal", "Part"]

Part = Literal["captioner", "matcher"]
"""A part of a BLIP."""

Goal = Literal["pretrain", "retrieval", "captioning"]
"""What a BEiT-3 is trained for."""
