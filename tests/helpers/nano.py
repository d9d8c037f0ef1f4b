"""Models small enough to train within a test, and pairs for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.blip import MED
from models.objectives.sizes import BLIP_SIZES, CLIP_SIZES, Size

NANO = Size(
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    image_size=32,
    embedding=8,
    positions=24,
    dropout=0.0,
)
CAPTIONS = ["a red dog", "two blue birds on the house", "small cat in a green tree", "the dog"]


def stand_in(monkeypatch: pytest.MonkeyPatch, size: Size = NANO) -> None:
    """Let `nano` name a size of BLIP and of CLIP."""
    for sizes in (BLIP_SIZES, CLIP_SIZES):
        monkeypatch.setitem(sizes, "nano", size)


def make(tokenizer: str, *parts: str, seed: int = 0, kind: type[MED] = MED, **settings: Any) -> Any:
    """A nano MED whose weights are large enough to matter."""
    torch.manual_seed(seed)
    parts = parts or ("captioner", "matcher")
    med = kind.from_pretrained("nano", parts=parts, tokenizer=tokenizer, **settings)
    with torch.no_grad():
        for parameter in med.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return med


def batch_of(
    model: Objective, captions: list[str] = CAPTIONS, seed: int = 0, side: int = 32
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        pixels=torch.randn(len(captions), 3, side, side, generator=generator),
        tokens=model.tokenize(captions, 24),
        image_ids=torch.arange(len(captions)),
    )


def step_of(seed: int | None = None) -> Step:
    """A step with draws of its own, at which alpha has risen."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return Step(number=1, generator=generator)


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}
