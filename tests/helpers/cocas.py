"""A tiny CoCa of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.blips import WORDS, tokenizer_of
from models.objectives.coca import Coca, Shape


def save_coca(folder: Path) -> str:
    """A CoCa as its training leaves it."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(WORDS.split())
    shape = Shape(
        width=32,
        heads=2,
        vision_layers=2,
        text_layers=2,
        image_size=32,
        patch=16,
        queries=4,
        positions=24,
        vocabulary=len(tokenizer),
    )
    model = Coca(shape, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.write(folder)
    return str(folder)
