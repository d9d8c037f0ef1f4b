from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models import towers
from models.towers import attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("images_at_once", [1, 2, 9])
def test_attention_in_parts_is_the_fused_attention(
    causal: bool, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "_CACHED", images_at_once * 4 * 5 * 5)
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(3, 3, 4, 5, 16, generator=generator).unbind(0)
    mask = None if causal else torch.rand(3, 1, 1, 5, generator=generator) < 0.7
    if mask is not None:
        mask[..., 0] = True
    stock = functional.scaled_dot_product_attention(*heads, mask, is_causal=causal)
    stock = stock.transpose(1, 2).flatten(2)
    with_gradients = attend(*heads, mask, causal=causal)
    with torch.inference_mode():
        fused = attend(*heads, mask, causal=causal)
        parts = attend(*(part.double() for part in heads), mask, causal=causal)
    for ours in (with_gradients, fused, parts.float()):
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
