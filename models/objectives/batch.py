"""Image-text pairs as a training reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.objectives.distributed import num_ranks, rank
from models.objectives.masking import kept_patches, kept_paths

__all__ = ["Batch", "tokenize"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """n pairs of one step.

    Attributes:
        pixels: float32 (n, 3, S, S), normalised.
        tokens: int64 (n, L): [CLS] text [SEP], padded on the right.
        image_ids: int64 (n,): equal where the image is the same.
        prompt: How many leading tokens, [CLS] included, the decoder is given and not asked for.
    """

    pixels: Tensor
    tokens: Tensor
    image_ids: Tensor
    prompt: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same pairs on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "tokens", "image_ids")}
        return dataclasses.replace(self, **moved)

    def split(self, number: int, streams: int = 1) -> list[Batch]:
        """The same pairs as so many batches of n / number.

        Where the pairs are those of several streams in turn, each has its share of every batch.
        """
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        parts = rows.view(streams, number, -1).transpose(0, 1).flatten(1)
        names = ("pixels", "tokens", "image_ids")
        return [
            dataclasses.replace(self, **{name: getattr(self, name)[part] for name in names})
            for part in parts
        ]

    def chances(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Numbers in [0, 1), (n, *shape): for a pair the same whichever rank it is dealt to."""
        n, device = len(self.tokens), self.tokens.device
        drawn = torch.rand(n * num_ranks(), *shape, generator=generator, device=device)
        return drawn[rank() * n : (rank() + 1) * n]

    def kept_patches(
        self, patch: int, masked: float, generator: torch.Generator | None
    ) -> Tensor | None:
        """The patches of each image that are seen, int64 (n, k), or None for all of them.

        Args:
            patch: Side of a patch, in pixels.
            masked: The share of the patches that is left out, below 1.
            generator: Draws them.
        """
        if not masked:
            return None
        side = self.pixels.shape[-1] // patch
        return kept_patches(self.chances((side * side,), generator), masked)

    def kept_paths(
        self, layers: int, dropped: float, generator: torch.Generator | None
    ) -> Tensor | None:
        """What the paths of each layer are multiplied by, (n, layers, 2), or None to keep all.

        Args:
            layers: Of the image encoder.
            dropped: The chance of the last layer to be left out, below 1.
            generator: Draws them.
        """
        if not dropped:
            return None
        return kept_paths(self.chances((layers, 2), generator), dropped)


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tensor:
    """int64 (n, L): texts with their first and last tokens, cut to `max_tokens`, padded."""
    encoded = tokenizer(
        list(texts),
        padding="longest",
        truncation=True,
        max_length=max_tokens,
        return_tensors="pt",
    )
    tokens: Tensor = encoded["input_ids"]
    return tokens
