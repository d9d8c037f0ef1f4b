"""Image-text contrast (ITC): soft targets, hard negatives, momentum encoders and their queue."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval

from models.attention import encode_texts, first_fused
from models.objectives.queue import check_queue

__all__ = ["Momentum", "contrast_loss", "contrast_targets", "hard_negatives"]

NOT_WRITTEN = -100
"""The image id of a place in the queue that holds no pair yet."""


def contrast_targets(
    ids: Tensor, all_ids: Tensor, momentum_similarity: Tensor, alpha: float
) -> Tensor:
    """The soft targets of ITC: the momentum model's predictions mixed with the truth.

    The truth is spread evenly over all candidates of the same image, as BLIP does in retrieval
    fine-tuning; where every image is met once it is one-hot, as in BLIP's pre-training.

    Args:
        ids: (n,) image ids of the rows.
        all_ids: (m,) image ids of the candidates; each row has at least one of its own.
        momentum_similarity: (n, m) similarities over temperature from the momentum encoders.
        alpha: Weight of the momentum model, 0 to 1.

    Returns:
        (n, m), rows that sum to 1.
    """
    same = (ids[:, None] == all_ids[None, :]).to(momentum_similarity.dtype)
    truth = same / same.sum(dim=1, keepdim=True)
    return alpha * momentum_similarity.softmax(dim=1) + (1 - alpha) * truth


def contrast_loss(similarity: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (n, m) similarities over temperature with soft (n, m) targets."""
    return -(F.log_softmax(similarity, dim=1) * targets).sum(dim=1).mean()


def hard_negatives(
    similarity: Tensor,
    ids: Tensor,
    all_ids: Tensor,
    chances: Tensor,
    floor: float = 0.0,
    *,
    streams: int = 0,
) -> Tensor:
    """Draw a negative for each row, in proportion to softmax(similarity) + floor.

    Nothing is added in BLIP's fine-tuning for retrieval (arXiv 2201.12086) and in ALBEF (arXiv
    2107.07651). BLIP's pre-training adds 1e-4 to every candidate; at low temperatures that draws
    mostly easy partners.

    Args:
        similarity: (n, m) similarities over temperature with the candidates.
        ids: (n,) image ids of the rows.
        all_ids: (m,) image ids of the candidates; one with the row's image is never drawn.
        chances: float32 (n,) in [0, 1), a random number that decides the draw of each row.
        floor: Added to each candidate's softmax over all of them, the row's own included.
        streams: Number of streams of the batch, if negatives are drawn from the row's own stream
            alone; the candidates are then the rows. 0 draws from all candidates.

    Returns:
        int64 (n,), -1 where every candidate has the row's image, or no similarity is a number.
    """
    if streams:
        drawn, each = [], len(ids) // streams
        for first in range(0, len(ids), each):
            rows = slice(first, first + each)
            partners = hard_negatives(
                similarity[rows, rows], ids[rows], ids[rows], chances[rows], floor
            )
            drawn.append(torch.where(partners < 0, partners, partners + first))
        return torch.cat(drawn)
    own = ids[:, None] == all_ids[None, :]
    scores = similarity.detach().double()
    if floor:
        weights = (scores.softmax(dim=1) + floor).masked_fill(own, 0.0).nan_to_num(0.0)
    else:
        # The row's own is masked before the softmax: beside it the others underflow.
        weights = scores.masked_fill(own, -torch.inf).softmax(dim=1).nan_to_num(0.0)
    mass = weights.cumsum(dim=1)
    whole = mass[:, -1:].contiguous()
    found = torch.searchsorted(mass, chances[:, None].double() * whole, right=True).squeeze(1)
    return found.masked_fill(whole.squeeze(1) == 0, -1)


class Momentum(nn.Module):
    """A slow copy of the contrastive encoders, and the last embeddings it made (MoCo's queue).

    Places of the queue that hold no pair yet are left out. BLIP fills them with random vectors;
    after the first `size` pairs there is no difference.

    Args:
        matcher: The model that it follows.
        size: Pairs in the queue.
        decay: Share of a weight that a step keeps.
        mlm: A head of masked language modelling that it follows, too. Its text encoder then looks
            at images.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor
    written: Tensor

    def __init__(
        self,
        matcher: BlipForImageTextRetrieval,
        size: int,
        decay: float,
        mlm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.size = size
        self.vision_model: Any = copy.deepcopy(matcher.vision_model)
        self.text_encoder = copy.deepcopy(matcher.text_encoder)
        self.mlm = copy.deepcopy(mlm)
        if mlm is None:
            first = first_fused(self.text_encoder.config)
            for layer in self.text_encoder.encoder.layer[first:]:
                del layer.crossattention  # the contrastive reading is unimodal
        self.vision_proj = copy.deepcopy(matcher.vision_proj)
        self.text_proj = copy.deepcopy(matcher.text_proj)
        self.requires_grad_(False)
        width = matcher.config.image_text_hidden_size
        self.register_buffer("images", torch.zeros(size, width))
        self.register_buffer("texts", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), NOT_WRITTEN, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, trained: Mapping[str, Tensor], parts: int = 1) -> None:
        """Move each weight towards the trained one: decay * own + (1 - decay) * trained.

        Args:
            trained: The trained weights by the names that they have here.
            parts: Updates in a step, which together move as far as one would.
        """
        decay = self.decay ** (1 / parts)
        own = dict(self.named_parameters())
        torch._foreach_lerp_(
            list(own.values()), [trained[name].detach() for name in own], 1 - decay
        )

    def embed(self, images: Tensor, tokens: Tensor, pad: int) -> tuple[Tensor, Tensor]:
        """Unit embeddings (n, d) of images as `encode_images` gives them, and of texts."""
        read = encode_texts(self.text_encoder, tokens, tokens != pad, first_only=True)
        return (
            F.normalize(self.vision_proj(images[:, 0]).float(), dim=-1),
            F.normalize(self.text_proj(read[:, 0]).float(), dim=-1),
        )

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of images and texts, and image ids, of the pairs in the queue."""
        filled = min(int(self.written), self.size)
        return self.images[:filled], self.texts[:filled], self.ids[:filled]

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        """Write a batch, of all ranks, over the oldest pairs.

        A batch with a value that is not finite is left out: it would be in the candidates of every
        step until it is the oldest.

        Raises:
            ValueError: The queue is not a multiple of the batch.
        """
        if not self.size:
            return
        check_queue(self.size, len(ids))
        if not (images.isfinite().all() and texts.isfinite().all()):
            return
        # A batch of another size than those before it may reach over the end.
        rows = (self.written + torch.arange(len(ids), device=ids.device)) % self.size
        self.images[rows], self.texts[rows], self.ids[rows] = images, texts, ids
        self.written += len(ids)
