"""The optimiser of a training, its learning rate, gradient averaging and bf16."""

from __future__ import annotations

import math

import torch

from models.objectives.base import Objective
from models.objectives.config import ObjectiveConfig
from models.objectives.distributed import num_ranks

__all__ = ["average_gradients", "learning_rate", "make_optimizer", "use_bf16"]


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


def learning_rate(config: ObjectiveConfig, step: int, steps: int, steps_an_epoch: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < config.warmup_steps:
        rise = config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
        return min(config.lr, rise)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "exponential":
        return max(config.min_lr, config.lr * config.decay_rate ** (step // steps_an_epoch))
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left


def average_gradients(objective: Objective) -> None:
    """Replace the gradient of each trained parameter by its mean over the ranks."""
    if num_ranks() == 1:
        return
    trained = list(objective.trained().values())
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    torch.distributed.all_reduce(flat)
    flat /= num_ranks()
    parts = torch.split(flat, [p.numel() for p in trained])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to use bf16 autocast; with `auto`, only if the device has bf16 instructions."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())
