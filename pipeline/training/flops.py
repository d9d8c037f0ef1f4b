"""How many floating-point operations a step takes, and how much of a device they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

__all__ = ["Flops", "counted", "peak_of"]

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bf16 operations a second of devices, by a word of their names (NVIDIA's data sheets)."""


@dataclass
class Flops:
    """A count of operations.

    Attributes:
        number: Of the matrix products of linear and convolution layers, forward and backward. The
            products within attention are not in it.
    """

    number: float = 0.0

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear):
            products = inputs[0].numel() * module.out_features
        elif isinstance(module, nn.Conv2d):
            products = output.numel() * module.weight[0].numel()
        else:
            return
        # The backward pass computes the gradients of inputs and of weights.
        is_trained = torch.is_grad_enabled() and module.weight.requires_grad
        self.number += 2 * products * (3 if is_trained else 1)


@contextmanager
def counted() -> Iterator[Flops]:
    """Count the operations of the modules that are called meanwhile; nothing is changed by it."""
    found = Flops()
    handle = register_module_forward_hook(found._add)
    try:
        yield found
    finally:
        handle.remove()


def peak_of(device: torch.device) -> float | None:
    """The operations a second that a device could do in bf16; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in PEAKS.items() if word in name), None)
