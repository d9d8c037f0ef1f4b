"""Language modelling (LM): the next token of each position, and the loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.objectives.masking import IGNORED

__all__ = ["lm_labels", "lm_loss"]


def lm_labels(tokens: Tensor, pad: int, prompt: int = 0) -> Tensor:
    """The next token of each position; IGNORED at padding and within the prompt.

    Args:
        tokens: int64 (n, L), first token [DEC] or [CLS].
        pad: The padding id.
        prompt: Leading tokens, the first included, that are given.

    Returns:
        int64 (n, L - 1): the label of position i is token i + 1.
    """
    labels = tokens.masked_fill(tokens == pad, IGNORED)
    labels[:, :prompt] = IGNORED
    return labels[:, 1:]


def lm_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean cross-entropy of (..., V) logits with labels, smoothed over the vocabulary."""
    return F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )
