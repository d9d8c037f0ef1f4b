"""BLIP's towers out of stock modules, with fused attention: seeing images, reading texts."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _checkpoint

__all__ = ["Memory", "read_texts", "remember", "see"]

Memory = list[tuple[Tensor, Tensor]]
"""For each text layer, the keys and values (n, heads, patches, d) of its cross-attention."""


checkpoint = functools.partial(_checkpoint, use_reentrant=False)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Attention of (n, heads, L, d), heads joined again; `mask` is additive."""
    mask = None if mask is None else mask.to(query.dtype)
    if query.device.type != "cpu":
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
        return context.transpose(1, 2).flatten(2)
    # On a CPU the fused kernel's backward is several times slower than two products.
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        length = scores.shape[-1]
        mask = torch.full((length, length), -torch.inf, dtype=scores.dtype).triu(1)
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2).flatten(2)


def see(
    vision: Any,
    pixels: Tensor,
    *,
    first_only: bool = False,
    kept: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Encode images: what `BlipVisionModel` gives as last_hidden_state.

    Args:
        vision: A `BlipVisionModel`.
        pixels: (n, 3, S, S).
        first_only: Leave out of the last layer all that [CLS] does not need.
        kept: int64 (n, k): the patches that are seen, all of them by default.
        recompute: Keep a layer's input alone and compute the layer again in the backward pass.

    Returns:
        (n, 1 + patches, width), [CLS] first and, with `first_only`, alone.
    """
    x = vision.embeddings(pixels)
    if kept is not None:
        x = torch.cat([x[:, :1], x[:, 1:].take_along_dim(kept[:, :, None], 1)], 1)

    def pass_through(layer: Any, x: Tensor) -> Tensor:
        attention = layer.self_attn
        dropout = attention.dropout.p if attention.training else 0.0
        qkv = attention.qkv(layer.layer_norm1(x))
        q, k, v = (_split(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
        if first_only and layer is vision.encoder.layers[-1]:
            x, q = x[:, :1], q[:, :, :1]
        x = x + attention.projection(_attend(q, k, v, None, False, dropout))
        passed: Tensor = x + layer.mlp(layer.layer_norm2(x))
        return passed

    for layer in vision.encoder.layers:
        x = checkpoint(pass_through, layer, x) if recompute else pass_through(layer, x)
    hidden: Tensor = vision.post_layernorm(x)
    return hidden


def remember(text: Any, images: Tensor) -> Memory:
    """The cross-attention keys and values of images, once for every text that looks at them."""
    crosses = [layer.crossattention.self for layer in text.encoder.layer]
    return [
        (
            _split(cross.key(images), cross.num_attention_heads),
            _split(cross.value(images), cross.num_attention_heads),
        )
        for cross in crosses
    ]


def read_texts(
    text: Any,
    tokens: Tensor,
    mask: Tensor | None = None,
    memory: Memory | None = None,
    *,
    causal: bool = False,
    first_only: bool = False,
    recompute: bool = False,
) -> Tensor:
    """Encode texts: what `BlipTextModel` gives as last_hidden_state.

    Args:
        text: A `BlipTextModel`.
        tokens: int64 (n, L).
        mask: bool (n, L), true at tokens and false at padding. A causal reader of texts padded on
            the right needs none: no token sees the padding behind it.
        memory: Of the images the texts look at; without it the reading is unimodal.
        causal: Whether a token sees only those before it, as in the decoder.
        first_only: Leave out of the last layer all that the first token does not need.
        recompute: As in `see`.

    Returns:
        (n, L, width), or (n, 1, width) with `first_only`.
    """
    x = text.embeddings(input_ids=tokens)
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        bias = bias[:, None, None, :]

    def pass_through(i: int, layer: Any, x: Tensor) -> Tensor:
        own = layer.attention.self
        dropout = own.dropout.p if own.training else 0.0
        heads = own.num_attention_heads
        k, v = _split(own.key(x), heads), _split(own.value(x), heads)
        if first_only and layer is text.encoder.layer[-1]:
            x = x[:, :1]
        q = _split(own.query(x), heads)
        x = layer.attention.output(_attend(q, k, v, bias, causal, dropout), x)
        if memory is not None:
            cross = layer.crossattention
            q = _split(cross.self.query(x), heads)
            x = cross.output(_attend(q, *memory[i], None, False, dropout), x)
        passed: Tensor = layer.feed_forward_chunk(x)
        return passed

    for i, layer in enumerate(text.encoder.layer):
        x = checkpoint(pass_through, i, layer, x) if recompute else pass_through(i, layer, x)
    hidden: Tensor = x
    return hidden
