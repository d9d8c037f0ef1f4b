"""Masks of a training: tokens (BERT, ALBEF), patches (FLIP) and layers (stochastic depth)."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.random import seed_of

__all__ = [
    "IGNORED",
    "MaskedHead",
    "continuations",
    "distilled",
    "hidden_blocks",
    "kept_patches",
    "kept_paths",
    "mask_tokens",
    "whole_words",
]

IGNORED = -100
"""The label of a token that a loss over tokens leaves out."""

LEAST_BLOCK = 16 / 196
"""The least share of the patches that a block hides, in BEiT."""

ASPECT = 0.3
"""The least height of a block over its width, and the least width over its height, in BEiT."""

MASKED = 0.15
"""Share of the tokens that BERT predicts."""


def kept_patches(chances: Tensor, masked: float) -> Tensor:
    """Which patches an image encoder sees (FLIP, arXiv 2212.00794): a random subset of a size.

    Args:
        chances: (n, patches) in [0, 1); those of the least chance stay.
        masked: The share of the patches that is left out, below 1.

    Returns:
        int64 (n, k), ascending, with k = patches - floor(masked * patches).
    """
    patches = chances.shape[1]
    number = patches - int(masked * patches)
    return chances.argsort(dim=1)[:, :number].sort(dim=1).values


def hidden_blocks(chances: Tensor, side: int, share: float) -> Tensor:
    """Which patches of images are hidden: blocks, as in BEiT (arXiv 2106.08254).

    Blocks of at least 16 of 196 patches, of an aspect from 0.3 to 1 / 0.3, are laid at random until
    the wanted number is hidden; of the last block some patches stay.

    Args:
        chances: (n,) in [0, 1), a random number that decides the blocks of each image.
        side: Patches in a row.
        share: Share of the patches that is hidden, below 1.

    Returns:
        bool (n, side * side), the same number true in each row.
    """
    number = int(share * side * side)
    rows = []
    for chance in chances.tolist():
        rng = random.Random(seed_of("blocks", chance))
        hidden: dict[int, None] = {}
        while len(hidden) < number:
            least = min(LEAST_BLOCK * side * side, number - len(hidden))
            area = rng.uniform(least, max(least, number - len(hidden)))
            aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
            height = min(side, max(1, round(math.sqrt(area * aspect))))
            width = min(side, max(1, round(math.sqrt(area / aspect))))
            top, left = rng.randint(0, side - height), rng.randint(0, side - width)
            for row in range(top, top + height):
                hidden.update(dict.fromkeys(range(row * side + left, row * side + left + width)))
        rows.append(list(hidden)[:number])
    found = torch.zeros(len(rows), side * side, dtype=torch.bool)
    for row, places in enumerate(rows):
        found[row, places] = True
    return found.to(chances.device)


def kept_paths(chances: Tensor, dropped: float) -> Tensor:
    """Which residual paths of an image encoder count (stochastic depth, arXiv 1603.09382).

    Args:
        chances: (n, layers, 2) in [0, 1), of the attention and the MLP of each layer.
        dropped: The chance of the last layer to be left out, below 1; it falls evenly to 0 at the
            first layer, as in BLIP's code.

    Returns:
        (n, layers, 2): what each path is multiplied by, 0 or the inverse of its chance to be kept.
    """
    rates = torch.linspace(0, dropped, chances.shape[1], device=chances.device)[:, None]
    return (chances >= rates) / (1 - rates)


def mask_tokens(
    tokens: Tensor,
    chances: Tensor,
    *,
    special: tuple[int, ...],
    mask: int,
    vocabulary: int,
    share: float = MASKED,
) -> tuple[Tensor, Tensor]:
    """Hide tokens as BERT does (arXiv 1810.04805) and ALBEF after it (arXiv 2107.07651).

    Each token is predicted with a probability of 15 %: 80 % of these are read as [MASK], 10 % as a
    token drawn at random, 10 % as they are.

    Args:
        tokens: int64 (n, L).
        chances: (n, L, 3) in [0, 1): whether a token is predicted, how it is hidden, by which
            token.
        special: Tokens that are never predicted: ALBEF names padding and [CLS].
        mask: The id of [MASK].
        vocabulary: The number of tokens to draw from.
        share: The probability that a token is predicted.

    Returns:
        The tokens to read, and the labels: the token where it is predicted, IGNORED elsewhere.
    """
    whether, how, which = chances.unbind(dim=2)
    asked = (whether < share) & ~torch.isin(tokens, torch.tensor(special, device=tokens.device))
    drawn = (which.double() * vocabulary).long()
    hidden = torch.where(how < 0.8, mask, torch.where(how < 0.9, drawn, tokens))
    return torch.where(asked, hidden, tokens), tokens.masked_fill(~asked, IGNORED)


def whole_words(chances: Tensor, continues: Tensor) -> Tensor:
    """The `chances` of `mask_tokens`, so that all tokens of a word are predicted, or none.

    Args:
        chances: (n, L, 3) in [0, 1).
        continues: bool (n, L), true for a token that continues the word of the one before it.
    """
    places = torch.arange(chances.shape[1], device=chances.device).expand_as(continues)
    first = places.masked_fill(continues, 0).cummax(1).values
    asked = chances[:, :, 0].gather(1, first)
    return torch.cat([asked[:, :, None], chances[:, :, 1:]], 2)


def distilled(logits: Tensor, labels: Tensor, momentum_logits: Tensor, alpha: float) -> Tensor:
    """Masked language modelling with momentum distillation (ALBEF, arXiv 2107.07651).

    Args:
        logits: (m, V) at the tokens to predict.
        labels: int64 (m,).
        momentum_logits: (m, V) of the momentum model, a constant.
        alpha: Weight of the momentum model, 0 to 1.

    Returns:
        The mean of (1 - alpha) * cross-entropy with the label + alpha * cross-entropy with the
        momentum model's probabilities; 0 if there is no token to predict.
    """
    log = F.log_softmax(logits.float(), dim=1)
    truth = F.nll_loss(log, labels, reduction="sum")
    belief = -(log * momentum_logits.float().softmax(dim=1)).sum()
    return ((1 - alpha) * truth + alpha * belief) / max(1, len(labels))


def continuations(tokenizer: Any, vocabulary: int) -> Tensor:
    """Which of the first `vocabulary` tokens continue a word, as BERT writes them; bool (V,)."""
    words = tokenizer.convert_ids_to_tokens(list(range(vocabulary)))
    return torch.tensor([str(word).startswith("##") for word in words])


class MaskedHead(nn.Module):
    """BERT's head of masked language modelling; its output weights are the word embeddings.

    Args:
        width: Width of the text encoder.
        vocabulary: Number of tokens.
        spread: Standard deviation of new weights.
    """

    def __init__(self, width: int, vocabulary: int, spread: float = 0.02) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        nn.init.normal_(self.dense.weight, std=spread)
        nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Logits (m, V) of hidden states (m, width) over the word embeddings (V, width)."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)
