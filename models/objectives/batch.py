"""A batch of a training: images with a text for each, or documents of several images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from models.objectives.distributed import num_ranks, rank
from models.objectives.masking import kept_patches, kept_paths

__all__ = ["Batch", "Documents", "tokenize"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """n images of a step, each with a text.

    Attributes:
        pixels: float32 (n, 3, S, S), normalised.
        tokens: int64 (n, L): [CLS] text [SEP], padded on the right; None for images without texts.
        image_ids: int64 (n,): equal where the image is the same.
        near_misses: int64 (n, k, L), tokens of k near misses of each text; padding alone where a
            text has fewer. None where the objective asks for none.
    """

    pixels: Tensor
    tokens: Tensor | None = None
    image_ids: Tensor
    near_misses: Tensor | None = None

    @property
    def texts(self) -> Tensor:
        """The tokens.

        Raises:
            ValueError: The batch has images alone.
        """
        if self.tokens is None:
            raise ValueError("the objective reads texts, and the batch has images alone")
        return self.tokens

    def to(self, device: torch.device) -> Self:
        """The same batch on another device; pinned memory is copied while other work goes on."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in pinned memory, which is copied to a GPU faster."""
        return self._map(lambda tensor: tensor.pin_memory())

    def split(self, number: int, streams: int = 1) -> list[Self]:
        """The same pairs as so many batches of n / number.

        Where the pairs are those of several streams in turn, each has its share of every batch.
        """
        rows = torch.arange(len(self.pixels), device=self.pixels.device)
        parts = rows.view(streams, number, -1).transpose(0, 1).flatten(1)
        return [self._map(partial(_rows, part)) for part in parts]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        near = self.near_misses
        return type(self)(
            pixels=change(self.pixels),
            tokens=None if self.tokens is None else change(self.tokens),
            image_ids=change(self.image_ids),
            near_misses=None if near is None else change(near),
        )

    def chances(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Numbers in [0, 1), (n, *shape): for a pair the same whichever rank has it."""
        n, device = len(self.pixels), self.pixels.device
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
        """Factors on the paths of each layer, (n, layers, 2), or None to keep all paths.

        Args:
            layers: Number of layers of the image encoder.
            dropped: The chance that the last layer is skipped, below 1.
            generator: Draws them.
        """
        if not dropped:
            return None
        return kept_paths(self.chances((layers, 2), generator), dropped)


@dataclass(frozen=True, kw_only=True)
class Documents(Batch):
    """n interleaved documents of a step: texts with images between the words.

    Attributes:
        pixels: float32 (n, k, 3, S, S), normalised: the images of each document in their order,
            then black ones up to k.
        tokens: int64 (n, L), as `Objective.tokenize_documents` gives them.
        image_ids: int64 (n,), those of the first images.
    """


def _rows(part: Tensor, tensor: Tensor) -> Tensor:
    return tensor[part]


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
