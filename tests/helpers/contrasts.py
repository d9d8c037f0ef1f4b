"""What holds of every dual encoder that is trained by contrast on a stock model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from helpers.nano import batch_of, step_of

__all__ = [
    "check_that_hidden_patches_change_the_loss_in_training_alone",
    "check_that_layers_computed_again_give_the_same_gradients",
    "check_that_the_loss_is_that_of_the_stock_model",
]


def check_that_the_loss_is_that_of_the_stock_model(model: Any, loss: str) -> None:
    batch = batch_of(model)
    stock = model.model(batch.tokens, batch.pixels, return_loss=True).loss
    torch.testing.assert_close(model(batch, step_of())[loss], stock)


def check_that_hidden_patches_change_the_loss_in_training_alone(model: Any, loss: str) -> None:
    model.eval()
    batch = batch_of(model)
    whole = model(batch, step_of())[loss].item()
    model.mask_patches = 0.5
    assert model(batch, step_of())[loss].item() == whole
    model.train()
    draws = [model(batch, step_of(seed))[loss].item() for seed in (0, 0, 1)]
    assert whole != draws[0] == draws[1] != draws[2]
    everything = torch.arange(4).expand(4, -1)
    torch.testing.assert_close(
        model.embed_images(batch.pixels, everything), model.embed_images(batch.pixels)
    )


def check_that_layers_computed_again_give_the_same_gradients(
    make: Callable[[], Any], loss: str
) -> None:
    gradients = []
    for recompute in (False, True):
        model = make().train()
        model.recompute = recompute
        assert model.recompute == recompute
        model(batch_of(model), step_of())[loss].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
