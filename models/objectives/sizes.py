"""Architectures of BLIP and CLIP by name, for models that start at random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import BlipConfig, CLIPConfig, SiglipConfig

from models.objectives.start import Shape

__all__ = [
    "BLIP_SIZES",
    "CLIP_SIZES",
    "Size",
    "blip_config",
    "clip_config",
    "shaped",
    "siglip_config",
]


@dataclass(frozen=True, kw_only=True)
class Size:
    """An architecture by its numbers: a ViT beside a BERT with cross-attention in every layer.

    Attributes:
        vision_width, vision_layers, vision_heads: Numbers of the ViT; its MLP is four times as
            wide.
        text_width, text_layers, text_heads: Numbers of the BERT; its MLP is four times as wide.
        image_size: Side of the square input, in pixels.
        patch: Side of a patch, in pixels.
        embedding: Length of the contrastive embeddings.
        positions: The longest text, in tokens.
        dropout: Dropout of the text layers.
        spread: Standard deviation of new weights; BERT's 0.02 is for its width of 768 and grows
            as the inverse square root of the width.
    """

    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    image_size: int = 224
    patch: int = 16
    embedding: int = 256
    positions: int = 512
    dropout: float = 0.1
    spread: float = 0.02


BLIP_SIZES = {
    "tiny": Size(
        vision_width=96,
        vision_layers=4,
        vision_heads=3,
        text_width=96,
        text_layers=2,
        text_heads=3,
        image_size=64,
        patch=16,
        embedding=64,
        positions=64,
        dropout=0.0,
        spread=0.06,
    ),
    "small": Size(
        vision_width=384,
        vision_layers=12,
        vision_heads=6,
        text_width=384,
        text_layers=6,
        text_heads=12,
    ),
    "base": Size(
        vision_width=768,
        vision_layers=12,
        vision_heads=12,
        text_width=768,
        text_layers=12,
        text_heads=12,
    ),
    "large": Size(
        vision_width=1024,
        vision_layers=24,
        vision_heads=16,
        text_width=768,
        text_layers=12,
        text_heads=12,
    ),
}
"""`base` and `large` are BLIP with ViT-B/16 and ViT-L/16, `small` with the numbers of DeiT-S/16
(arXiv 2012.12877) and of MiniLM-L6-H384 (arXiv 2002.10957); `tiny` is for drawings of 64 pixels."""


CLIP_SIZES = {
    "tiny": BLIP_SIZES["tiny"],
    "small": replace(BLIP_SIZES["small"], text_heads=6, text_layers=12, positions=77),
    "base": replace(BLIP_SIZES["base"], text_width=512, text_heads=8, embedding=512, positions=77),
    "large": replace(BLIP_SIZES["large"], patch=14, embedding=768, positions=77),
}
"""`base` is CLIP with ViT-B/16, `large` with ViT-L/14 and `small` with ViT-S/16 (width 384 for
images and texts); `tiny` is for drawings of 64 pixels."""


def shaped(sizes: Mapping[str, Size], name: str, shape: Shape | None) -> Size:
    """A size with the numbers of a manifest in the place of its own.

    Raises:
        ValueError: Heads do not divide a width.
    """
    size = replace(sizes[name], **(shape.numbers() if shape else {}))
    for part in ("vision", "text"):
        width, heads = getattr(size, f"{part}_width"), getattr(size, f"{part}_heads")
        if width % heads:
            raise ValueError(
                f"train.shape: {part}_heads must divide {part}_width, got {heads} and {width}"
            )
    return size


def blip_config(size: Size, tokenizer: Any, *, image_size: int | None = None) -> BlipConfig:
    """BLIP at a size, for a tokenizer that holds [DEC] and [ENC] as its last two tokens."""
    return BlipConfig(
        vision_config={
            **_vision(size, image_size),
            "initializer_range": size.spread,
        },
        text_config={
            **_text(size, tokenizer),
            "hidden_dropout_prob": size.dropout,
            "attention_probs_dropout_prob": size.dropout,
            "bos_token_id": len(tokenizer) - 2,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "label_smoothing": 0.1,
            "initializer_range": size.spread,
        },
        image_text_hidden_size=size.embedding,
        initializer_range=size.spread,
    )


def clip_config(size: Size, tokenizer: Any, *, image_size: int | None = None) -> CLIPConfig:
    """CLIP at a size, for a tokenizer.

    Raises:
        ValueError: No token ends a text, or it is number 2, which stock CLIP reads otherwise.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    if end is None or end == 2:
        raise ValueError(
            f"train.tokenizer: CLIP reads a text at its last token, which must have a number of "
            f"its own that is not 2, got {end}: use CLIP's tokenizer or BERT's"
        )
    return CLIPConfig(
        text_config={
            **_text(size, tokenizer),
            "bos_token_id": begin,
            "eos_token_id": end,
        },
        vision_config=_vision(size, image_size),
        projection_dim=size.embedding,
        logit_scale_init_value=math.log(1 / 0.07),
    )


def siglip_config(
    size: Size, tokenizer: Any, *, image_size: int | None = None, max_text_tokens: int = 64
) -> SiglipConfig:
    """SigLIP at a size, for a tokenizer; both towers give embeddings of the image's width."""
    return SiglipConfig(
        text_config={
            **_text(size, tokenizer),
            "hidden_size": size.vision_width,
            "intermediate_size": 4 * size.vision_width,
            "num_attention_heads": size.vision_heads,
            "projection_size": size.vision_width,
            "max_position_embeddings": max_text_tokens,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config=_vision(size, image_size),
    )


def _vision(size: Size, image_size: int | None) -> dict[str, Any]:
    return {
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
        "image_size": image_size or size.image_size,
        "patch_size": size.patch,
    }


def _text(size: Size, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.text_width,
        "intermediate_size": 4 * size.text_width,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_heads,
        "max_position_embeddings": size.positions,
        "pad_token_id": tokenizer.pad_token_id,
    }
