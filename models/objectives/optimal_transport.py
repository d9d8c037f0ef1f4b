"""The optimal transport between words and patches (ViLT, arXiv 2102.03334; UNITER, 1909.11740)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["transport_cost", "transport_plan"]

BETA = 0.5
ITERATIONS = 50


@torch.no_grad()
def transport_plan(cost: Tensor, is_word: Tensor) -> Tensor:
    """A plan (n, L, P) that moves equal weights of words to equal weights of patches at least cost.

    The inexact proximal point method (IPOT, arXiv 1802.04307), 50 iterations of one inner step.

    Args:
        cost: (n, L, P) of moving a word to a patch.
        is_word: bool (n, L); others have no weight.

    Returns:
        Rows of words sum to 1 / words and columns to 1 / P, about; other rows are 0. A text
        without words has no plan: 0.
    """
    words = is_word.sum(1).clamp(min=1)[:, None].float()
    patches = cost.shape[2]
    kernel = (-cost / BETA).exp() * is_word[:, :, None]
    plan = is_word[:, :, None].float().expand_as(cost)
    from_words = is_word / words
    for _ in range(ITERATIONS):
        moved = kernel * plan
        to_patches = 1 / (patches * torch.einsum("nlp,nl->np", moved, from_words)).clamp(min=1e-12)
        reached = words * torch.einsum("nlp,np->nl", moved, to_patches)
        from_words = is_word / reached.clamp(min=1e-12)
        plan = to_patches[:, None] * moved * from_words[:, :, None]
    return plan


def transport_cost(words: Tensor, patches: Tensor, is_word: Tensor) -> Tensor:
    """The least cost (n,) of moving words to patches: one less their cosine, the plan constant.

    Args:
        words: (n, L, D).
        patches: (n, P, D).
        is_word: bool (n, L).
    """
    cosine = F.normalize(words, dim=-1) @ F.normalize(patches, dim=-1).transpose(1, 2)
    cost = (1 - cosine) * is_word[:, :, None]
    return (cost * transport_plan(cost.detach(), is_word)).sum((1, 2))
