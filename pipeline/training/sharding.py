"""A model whose weights are divided among the ranks (FSDP2), so that each rank holds a part.

A rank holds its part of every weight, of its gradient and of the optimiser's state. Layers of the
language model are gathered one after the other while they compute; the rest of the model is
gathered once a step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models.objectives.base import Objective
from models.objectives.distributed import num_ranks

__all__ = ["divide", "part_of", "whole"]


def divide(objective: Objective, device: torch.device) -> None:
    """Divide the weights of a model, which is the same on each rank; one rank keeps it as it is."""
    if num_ranks() == 1:
        return
    mesh = init_device_mesh(device.type, (num_ranks(),))
    for layer in objective.layers():
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one rank would have it. Every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: Tensor, tensor: Tensor) -> Tensor:
    """What this rank holds of a whole value where it holds a tensor. Every rank must ask for it."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements)
