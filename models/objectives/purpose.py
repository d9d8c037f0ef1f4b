"""Words for what a model is trained for, which both its settings and its own module use.

A manifest is validated with these words, so this module imports no torch.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Goal", "Part"]

Part = Literal["captioner", "matcher"]
"""A part of a BLIP."""

Goal = Literal["pretrain", "retrieval", "captioning"]
"""The goal of a BEiT-3's training."""
