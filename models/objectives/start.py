"""Start of a new model: weights of single encoders, and an architecture of its own.

A manifest is validated with these classes, so this module imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["NO_SHAPE", "NO_START", "Shape", "Start"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that parts of a new model start from.

    Each is a folder, a name on the hub or `train:NAME`. Half-precision weights are read in float32.

    Attributes:
        vision: Weights of the image encoder: a ViT, a DeiT or a BLIP, in `clip` a CLIP.
        text: Weights of the text encoder: a BERT or a BLIP, in `clip` a CLIP. BERT's
            self-attention starts both encoder and decoder; cross-attention starts at random.
        language: The language model that `generate`, `project` and `flamingo` build on; their field
            `language` is the same.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    vision: str | None = None
    text: str | None = None
    language: str | None = None

    def models(self) -> dict[str, str]:
        """The models by the part that starts from them."""
        return {part: model for part, model in dataclasses.asdict(self).items() if model}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Numbers of a new model that differ from those of its size.

    Attributes:
        vision_width: Width of the image encoder; its MLP is four times as wide.
        vision_layers: Layers of the image encoder.
        vision_heads: Heads of attention of the image encoder.
        text_width: Width of the text encoder; its MLP is four times as wide.
        text_layers: Layers of the text encoder.
        text_heads: Heads of attention of the text encoder.
        patch: Side of a patch, in pixels.
        embedding: Length of the contrastive embeddings.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    vision_width: int | None = None
    vision_layers: int | None = None
    vision_heads: int | None = None
    text_width: int | None = None
    text_layers: int | None = None
    text_heads: int | None = None
    patch: int | None = None
    embedding: int | None = None

    def numbers(self) -> dict[str, int]:
        """The numbers that are set.

        Raises:
            ValueError: One is below 1.
        """
        found = {name: n for name, n in dataclasses.asdict(self).items() if n is not None}
        for name, number in found.items():
            if number < 1:
                raise ValueError(f"train.shape.{name} must be at least 1, got {number}")
        return found


NO_START = Start()
NO_SHAPE = Shape()
