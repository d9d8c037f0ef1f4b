"""The optimiser of a training, its learning rate, gradient averaging and bf16."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.objectives.base import Objective
from models.objectives.config import ObjectiveConfig
from models.objectives.distributed import num_ranks
from pipeline.training.sharding import divide, whole

__all__ = ["Average", "Skipped", "clip", "learning_rate", "make_optimizer", "parallel", "use_bf16"]

MOST_SKIPPED = 10
"""So many steps in a row that are not finite end a training."""


def make_optimizer(objective: Objective, config: ObjectiveConfig) -> torch.optim.AdamW:
    """AdamW for the trained parameters, with weight decay only on matrices."""
    trained = list(objective.trained().values())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(0.9, config.beta2), eps=config.eps, fused=True
    )


def learning_rate(
    config: ObjectiveConfig, step: int, steps: int, steps_an_epoch: int, shift: int = 0
) -> float:
    """The learning rate of a step, counted from 0.

    Args:
        config: The schedule.
        step: The number of the step.
        steps: Steps of the whole schedule.
        steps_an_epoch: Steps in an epoch.
        shift: Added to `step` to find its epoch.
    """
    if step < config.warmup_steps:
        rise = config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
        return min(config.lr, rise)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "exponential":
        return max(
            config.min_lr, config.lr * config.decay_rate ** ((step + shift) // steps_an_epoch)
        )
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left


def parallel(objective: Objective, device: torch.device, *, is_divided: bool = False) -> nn.Module:
    """The objective, with gradients that are averaged over the ranks while they are computed.

    With `is_divided` each rank then holds a part of the weights (FSDP2), otherwise all of them.

    Averages go over a group of their own: the losses of some objectives exchange embeddings in
    their backward pass, too.
    """
    if num_ranks() == 1:
        return objective
    if is_divided:
        divide(objective, device)
        return objective
    # A step changes buffers in the same way on each rank; torch 2.13 has a new name for it.
    known = inspect.signature(DistributedDataParallel).parameters
    syncs = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known)
    settings: dict[str, Any] = {syncs: False}
    return DistributedDataParallel(
        objective,
        process_group=torch.distributed.new_group(),
        find_unused_parameters=True,  # not every objective uses every parameter in every step
        gradient_as_bucket_view=True,
        **settings,
    )


class Average:
    """Running means of the trained weights, which are written and measured in their place.

    Args:
        objective: The model.
        decay: How much of a mean each step keeps.

    Attributes:
        means: The mean of each trained weight, by name.
    """

    def __init__(self, objective: Objective, decay: float) -> None:
        self.trained = objective.trained()
        self.decay = decay
        self.means = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the means towards the weights."""
        trained = [p.detach() for p in self.trained.values()]
        torch._foreach_lerp_(list(self.means.values()), trained, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the means for a while."""
        own = {name: p.data for name, p in self.trained.items()}
        for name, p in self.trained.items():
            p.data = self.means[name]
        try:
            yield
        finally:
            for name, p in self.trained.items():
                p.data = own[name]


@torch.no_grad()
def clip(objective: Objective, longest: float = 0.0) -> Tensor:
    """The norm of the gradients of all trained parameters together, float32; on the device.

    Args:
        objective: The model, after the backward pass.
        longest: Gradients of a greater norm are scaled down to it; 0 leaves them as they are.
    """
    gradients = [p.grad for p in objective.trained().values() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if longest:
        for gradient in gradients:
            gradient.mul_((longest / norm).clamp(max=1.0))
    return norm


@dataclass
class Skipped:
    """The steps that a training left out because a loss or a gradient was not finite.

    Attributes:
        total: So many in all.
        in_a_row: So many since the last step that was carried out.
    """

    total: int = 0
    in_a_row: int = 0

    def add(self, step: int, found: Mapping[str, float], lr: float) -> str:
        """Count a step that is left out, and describe it.

        Args:
            step: Its number, counted from 0.
            found: The losses and `grad_norm`.
            lr: The highest learning rate of the training.

        Raises:
            FloatingPointError: It is the last of too many in a row.
        """
        self.total += 1
        self.in_a_row += 1
        bad = ", ".join(name for name, value in found.items() if not math.isfinite(value))
        if self.in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"train: {bad} not finite in {self.in_a_row} steps in a row, up to step {step}: "
                f"use a lower lr ({lr}), max_grad_norm or precision fp32, and continue from the "
                "last checkpoint with `capfilt train MANIFEST --continue`"
            )
        return f"step {step} is skipped, {self.total} so far: {bad} not finite"


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to use bf16 autocast; with `auto`, only if the device has bf16 instructions."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
