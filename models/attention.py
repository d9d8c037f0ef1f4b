"""BLIP's vision and text encoders from transformers' modules, with faster attention."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _checkpoint

__all__ = [
    "Memory",
    "attend",
    "cross_attention_kv",
    "encode_images",
    "encode_texts",
    "first_fused",
    "pick_patches",
    "split_heads",
]

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values (n, heads, patches, d) of the cross-attention of each text layer that has one."""

_CACHED = 2**22
"""Number of attention scores computed at once on a CPU, so that they fit in its cache."""

checkpoint = functools.partial(_checkpoint, use_reentrant=False)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (n, L, width) to (n, heads, L, d)."""
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
    """Compute multi-head attention with the fastest method of the device.

    Args:
        query: (n, heads, L, d).
        key: (n, heads, M, d).
        value: (n, heads, M, d).
        mask: bool, true where a key may be attended to; broadcasts to (n, heads, L, M).
        causal: Whether a query attends only to keys up to its own position.
        dropout: Dropout probability of the attention weights.

    Returns:
        (n, L, heads * d), in the dtype of `query`.
    """
    # On a CPU, two matrix products are several times faster than the fused kernel in half
    # precision, and in the backward pass in any precision.
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
    rows_at_once = max(1, _CACHED // (query.shape[1] * query.shape[2] * key.shape[2]))
    if torch.is_grad_enabled() or rows_at_once >= rows or (mask is not None and mask.dim() > 2):
        rows_at_once = max(1, rows)
    parts = [
        _weigh(q, k, v, mask, dropout)
        for q, k, v in zip(
            *(torch.split(x, rows_at_once) for x in (query, key, value)), strict=True
        )
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


def pick_patches(x: Tensor, kept: Tensor) -> Tensor:
    """(n, 1 + k, width): [CLS] and the patches `kept` (n, k) of (n, 1 + patches, width)."""
    return torch.cat([x[:, :1], x[:, 1:].take_along_dim(kept[:, :, None], 1)], 1)


def encode_images(
    vision: Any,
    pixels: Tensor,
    *,
    first_only: bool = False,
    kept: Tensor | None = None,
    paths: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Encode images; the result is the last_hidden_state of `BlipVisionModel`.

    Args:
        vision: A `BlipVisionModel`.
        pixels: (n, 3, S, S).
        first_only: Compute only [CLS] in the last layer.
        kept: int64 (n, k), the patches to encode; all of them by default.
        paths: (n, layers, 2), factors on the outputs of attention and MLP of each layer before the
            residual addition (stochastic depth); 1 by default.
        recompute: Save memory: store only the input of each layer, and compute the layer again in
            the backward pass.

    Returns:
        (n, 1 + patches, width), with [CLS] first; (n, 1, width) with `first_only`.
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
        x = x + scale_path(i, 0, attention.projection(attend(q, k, v, dropout=dropout)))
        return x + scale_path(i, 1, layer.mlp(layer.layer_norm2(x)))

    def scale_path(i: int, path: int, added: Tensor) -> Tensor:
        return added if paths is None else added * paths[:, i, path, None, None].to(added.dtype)

    for i, layer in enumerate(vision.encoder.layers):
        x = checkpoint(pass_through, i, layer, x) if recompute else pass_through(i, layer, x)
    hidden: Tensor = vision.post_layernorm(x)
    return hidden


def first_fused(config: Any) -> int:
    """Return the index of the first text layer that attends to images: 0 in BLIP.

    In ALBEF (arXiv 2107.07651) it is half the number of layers. The layers before it see only the
    text, and the contrastive embedding of a text is their output.

    Args:
        config: A `BlipTextConfig`.
    """
    return int(getattr(config, "fusion_layer", 0))


def cross_attention_kv(text: Any, images: Tensor) -> Memory:
    """Compute the cross-attention keys and values of images, to reuse them for several texts."""
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
    """Encode texts; the result is the last_hidden_state of `BlipTextModel`.

    In the layers before `first_fused`, cross-attention outputs zero, and only its layer norm is
    applied; transformers computes the same if there is an image. Without an image, only these
    layers are applied, which transformers does not support.

    Args:
        text: A `BlipTextModel`.
        tokens: int64 (n, L).
        mask: bool (n, L), true for tokens and false for padding. Not needed for a causal decoder
            with padding on the right, where no token attends to padding.
        memory: Keys and values of the images that the texts attend to; None encodes the texts
            alone.
        causal: Whether a token attends only to itself and earlier ones, as in the decoder.
        first_only: Compute only the first token in the last layer.
        recompute: As in `encode_images`.

    Returns:
        (n, L, width), or (n, 1, width) with `first_only`.
    """
    x = text.embeddings(input_ids=tokens)
    readable = None if mask is None else mask[:, None, None, :]
    fused = first_fused(text.config)
    layers = text.encoder.layer[: fused if fused and memory is None else None]

    def pass_through(i: int, layer: Any, x: Tensor) -> Tensor:
        attention = layer.attention.self
        dropout = attention.dropout.p if attention.training else 0.0
        heads = attention.num_attention_heads
        k, v = split_heads(attention.key(x), heads), split_heads(attention.value(x), heads)
        if first_only and layer is layers[-1]:
            x = x[:, :1]
        q = split_heads(attention.query(x), heads)
        context = attend(q, k, v, readable, causal=causal, dropout=dropout)
        x = layer.attention.output(context, x)
        if i < fused:
            x = layer.crossattention.output.LayerNorm(x)
        elif memory is not None:
            cross = layer.crossattention
            q = split_heads(cross.self.query(x), heads)
            x = cross.output(attend(q, *memory[i - fused], dropout=dropout), x)
        output: Tensor = layer.feed_forward_chunk(x)
        return output

    for i, layer in enumerate(layers):
        x = checkpoint(pass_through, i, layer, x) if recompute else pass_through(i, layer, x)
    hidden: Tensor = x
    return hidden
