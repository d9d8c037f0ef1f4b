"""Image-text contrast (ITC): soft targets, hard negatives, momentum encoders and their queue."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval

from models.queue import check_queue
from models.towers import read_texts, see

__all__ = ["Momentum", "contrast_loss", "contrast_targets", "gather", "hard_negatives"]

NOT_WRITTEN = -100
"""The image id of a place in the queue that holds no pair yet."""


def contrast_targets(
    ids: Tensor, all_ids: Tensor, momentum_similarity: Tensor, alpha: float
) -> Tensor:
    """The soft targets of ITC: the momentum model's belief mixed with the truth.

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
    similarity: Tensor, ids: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One wrong partner for each row, drawn in proportion to softmax(similarity) + 1e-4.

    The constant is BLIP's, and keeps rows whose weights underflow from failing.

    Args:
        similarity: (n, n) similarities over temperature within the batch.
        ids: (n,) image ids; a candidate with the row's image is never drawn.
        generator: Source of the draw, on the device of `similarity`.

    Returns:
        int64 (n,), -1 where every candidate has the row's image.
    """
    weights = similarity.detach().float().softmax(dim=1) + 1e-4
    weights = weights.masked_fill(ids[:, None] == ids[None, :], 0.0)
    alone = weights.sum(dim=1) == 0
    weights = weights.masked_fill(alone[:, None], 1.0)
    drawn = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return drawn.masked_fill(alone, -1)


def gather(x: Tensor) -> Tensor:
    """The rows of every rank, in rank order; the rows themselves where there is one."""
    if not torch.distributed.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class Momentum(nn.Module):
    """A slow copy of the contrastive encoders and the last embeddings it made (MoCo's queue).

    Candidates that were never written are left out, where BLIP starts from random vectors: the
    same after the first `size` pairs.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor
    written: Tensor

    def __init__(self, matcher: BlipForImageTextRetrieval, size: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.size = size
        self.vision_model = copy.deepcopy(matcher.vision_model)
        self.text_encoder = copy.deepcopy(matcher.text_encoder)
        for layer in self.text_encoder.encoder.layer:
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
    def update(self, matcher: BlipForImageTextRetrieval) -> None:
        """Move each weight towards the trained one: decay * own + (1 - decay) * trained."""
        trained = dict(matcher.named_parameters())
        own = dict(self.named_parameters())
        torch._foreach_lerp_(
            list(own.values()), [trained[name].detach() for name in own], 1 - self.decay
        )

    def embed(self, pixels: Tensor, tokens: Tensor, pad: int) -> tuple[Tensor, Tensor]:
        """Unit embeddings (n, d) of images and of texts."""
        seen = see(self.vision_model, pixels, first_only=True)
        read = read_texts(self.text_encoder, tokens, tokens != pad, first_only=True)
        return (
            F.normalize(self.vision_proj(seen[:, 0]).float(), dim=-1),
            F.normalize(self.text_proj(read[:, 0]).float(), dim=-1),
        )

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of images and texts, and image ids, of the pairs in the queue."""
        filled = min(int(self.written), self.size)
        return self.images[:filled], self.texts[:filled], self.ids[:filled]

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        """Write the pairs of all ranks over the oldest ones; the queue holds whole batches.

        Raises:
            ValueError: The queue is not a multiple of the batch.
        """
        if not self.size:
            return
        images, texts, ids = gather(images), gather(texts), gather(ids)
        check_queue(self.size, len(ids))
        at = int(self.written) % self.size
        self.images[at : at + len(ids)] = images
        self.texts[at : at + len(ids)] = texts
        self.ids[at : at + len(ids)] = ids
        self.written += len(ids)
