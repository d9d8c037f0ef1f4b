"""BLIP's towers out of stock modules, with the attention that a device does fastest."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _checkpoint

from models.objectives.masking import pick_patches

__all__ = [
    "Memory",
    "attend",
    "cross_attention_kv",
    "encode_images",
    "encode_texts",
    "first_fused",
    "split_heads",
]

Memory = list[tuple[Tensor, Tensor]]
"""For each text layer that looks at images, the keys and values (n, heads, patches, d) of its
cross-attention."""

_CACHED = 2**22
"""Scores that a CPU's caches hold: attention in parts takes no more at once."""

checkpoint = functools.partial(_checkpoint, use_reentrant=False)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(n, L, width) as (n, heads, L, d)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each head by the fastest way the device has.

    Args:
        query: (n, heads, L, d).
        key: (n, heads, M, d).
        value: (n, heads, M, d).
        mask: Boolean, true where a key may be read; it broadcasts to (n, heads, L, M).
        causal: Whether a query reads only keys up to its own place.
        dropout: Share of the weights set to zero.

    Returns:
        (n, L, heads * d), in the dtype of `query`.
    """
    # A CPU's fused kernel is several times slower than two products in half precision, and in
    # its backward pass in any.
    in_parts = query.device.type == "cpu" and (
        torch.is_grad_enabled() or query.dtype != torch.float32
    )
    if not in_parts:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
        return context.transpose(1, 2).flatten(2)
    if causal:
        length = query.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    rows = len(query)
    at_once = max(1, _CACHED // (query.shape[1] * query.shape[2] * key.shape[2]))
    if torch.is_grad_enabled() or at_once >= rows or (mask is not None and mask.dim() > 2):
        at_once = max(1, rows)
    parts = [
        _weigh(q, k, v, mask, dropout)
        for q, k, v in zip(*(torch.split(x, at_once) for x in (query, key, value)), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weigh(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2).flatten(2)


def encode_images(
    vision: Any,
    pixels: Tensor,
    *,
    first_only: bool = False,
    kept: Tensor | None = None,
    paths: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Encode images: what `BlipVisionModel` gives as last_hidden_state.

    Args:
        vision: A `BlipVisionModel`.
        pixels: (n, 3, S, S).
        first_only: Leave out of the last layer all that [CLS] does not need.
        kept: int64 (n, k): the patches that are seen, all of them by default.
        paths: (n, layers, 2): what attention and MLP of each layer are multiplied by before they
            are added, 1 by default.
        recompute: Keep a layer's input alone and compute the layer again in the backward pass.

    Returns:
        (n, 1 + patches, width), [CLS] first and, with `first_only`, alone.
    """
    x = vision.embeddings(pixels)
    if kept is not None:
        x = pick_patches(x, kept)

    def pass_through(i: int, layer: Any, x: Tensor) -> Tensor:
        attention = layer.self_attn
        dropout = attention.dropout.p if attention.training else 0.0
        qkv = attention.qkv(layer.layer_norm1(x))
        q, k, v = (split_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
        if first_only and layer is vision.encoder.layers[-1]:
            x, q = x[:, :1], q[:, :, :1]
        x = x + along(i, 0, attention.projection(attend(q, k, v, dropout=dropout)))
        return x + along(i, 1, layer.mlp(layer.layer_norm2(x)))

    def along(i: int, path: int, added: Tensor) -> Tensor:
        return added if paths is None else added * paths[:, i, path, None, None].to(added.dtype)

    for i, layer in enumerate(vision.encoder.layers):
        x = checkpoint(pass_through, i, layer, x) if recompute else pass_through(i, layer, x)
    hidden: Tensor = vision.post_layernorm(x)
    return hidden


def first_fused(config: Any) -> int:
    """The number of the first text layer that looks at images: 0 in BLIP.

    In ALBEF (arXiv 2107.07651) it is half of the layers. Those before it read the text alone, and
    the contrastive reading of a text ends with them.

    Args:
        config: A `BlipTextConfig`.
    """
    return int(getattr(config, "fusion_layer", 0))


def cross_attention_kv(text: Any, images: Tensor) -> Memory:
    """The cross-attention keys and values of images, once for every text that looks at them."""
    crosses = [
        layer.crossattention.self for layer in text.encoder.layer[first_fused(text.config) :]
    ]
    return [
        (
            split_heads(cross.key(images), cross.num_attention_heads),
            split_heads(cross.value(images), cross.num_attention_heads),
        )
        for cross in crosses
    ]


def encode_texts(
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

    The layers before `first_fused` have a cross-attention that gives nothing but its norm, which
    stands in the place of the norm of their self-attention: stock transformers reads the same
    beside an image. Without an image only these layers read, which stock transformers cannot.

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
    readable = None if mask is None else mask[:, None, None, :]
    fused = first_fused(text.config)
    layers = text.encoder.layer[: fused if fused and memory is None else None]

    def pass_through(i: int, layer: Any, x: Tensor) -> Tensor:
        own = layer.attention.self
        dropout = own.dropout.p if own.training else 0.0
        heads = own.num_attention_heads
        k, v = split_heads(own.key(x), heads), split_heads(own.value(x), heads)
        if first_only and layer is layers[-1]:
            x = x[:, :1]
        q = split_heads(own.query(x), heads)
        own_context = attend(q, k, v, readable, causal=causal, dropout=dropout)
        x = layer.attention.output(own_context, x)
        if i < fused:
            x = layer.crossattention.output.LayerNorm(x)
        elif memory is not None:
            cross = layer.crossattention
            q = split_heads(cross.self.query(x), heads)
            x = cross.output(attend(q, *memory[i - fused], dropout=dropout), x)
        passed: Tensor = layer.feed_forward_chunk(x)
        return passed

    for i, layer in enumerate(layers):
        x = checkpoint(pass_through, i, layer, x) if recompute else pass_through(i, layer, x)
    hidden: Tensor = x
    return hidden
