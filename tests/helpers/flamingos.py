"""A nano Flamingo with random weights."""

from __future__ import annotations

from typing import Any

import torch

from helpers.contract import small
from models.objectives.flamingo_config import FlamingoConfig


def make(tokenizer: str, *, is_open: bool = True, **fields: Any) -> Any:
    """A nano Flamingo, its gates open unless it is as it begins."""
    torch.manual_seed(0)
    model: Any = small(FlamingoConfig, tokenizer, **fields).build().eval()
    if is_open:
        with torch.no_grad():
            for block in model.blocks:
                block.attention_gate.fill_(1.0)
                block.feed_gate.fill_(1.0)
    return model
