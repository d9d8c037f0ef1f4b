"""Gathers tensors of the ranks of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

__all__ = ["balance", "gather", "gather_texts", "gather_with_gradient", "num_ranks", "rank"]


def rank() -> int:
    """The number of this rank; 0 if there is only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_ranks() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """The rows of every rank, in rank order, as constants; the same number on each rank."""
    if num_ranks() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(num_ranks())]
    distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gather_texts(tokens: Tensor, pad: int) -> Tensor:
    """The texts (n, L) of every rank, padded on the right to the longest of all."""
    if num_ranks() == 1:
        return tokens
    longest = torch.tensor(tokens.shape[1], device=tokens.device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    return gather(F.pad(tokens, (0, int(longest) - tokens.shape[1]), value=pad))


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of every rank; the gradient of a row is the sum of what every rank has for it.

    The mean of the parameters' gradients over the ranks is then the gradient of the mean of the
    ranks' losses, as one rank with all rows would have it.
    """
    gathered: Tensor = x if num_ranks() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        distributed.all_reduce(gradient)
        return gradient.chunk(num_ranks())[rank()]


def balance(count: int, device: torch.device) -> float:
    """The factor of a mean over `count` items that makes the mean of all ranks one over all items.

    Ranks have texts of different lengths; the mean of their means is not the mean over tokens.
    """
    if num_ranks() == 1:
        return 1.0
    total = torch.tensor(float(count), device=device)
    distributed.all_reduce(total)
    return count * num_ranks() / max(1.0, total.item())
