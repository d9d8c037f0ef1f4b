"""Tiny dual encoders of every family, with random weights and tokenizers of their own kind."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import (
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTokenizer,
    XLMRobertaTokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from helpers.blips import WORDS, random_model, save_clip

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
POSITIONS = 16
"""Tokens of a text that SigLIP's and MetaCLIP 2's read here."""


def save_siglip(folder: Path) -> str:
    """SigLIP with a SentencePiece tokenizer, as the released ones have."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split() * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        unk_id=2,
        bos_id=-1,
        eos_id=1,
        pad_id=0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=POSITIONS)
    config = SiglipConfig(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": POSITIONS,
            "projection_size": 32,
        },
        vision_config={**SMALL, "image_size": 32, "patch_size": 16},
    )
    random_model(SiglipModel, config, spread=1.5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def save_siglip2(folder: Path) -> str:
    """SigLIP 2 of any aspect ratio (NaFlex)."""
    letters = sorted(set(WORDS) - {" "})
    units = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
    tokenizer = Siglip2Tokenizer({unit: i for i, unit in enumerate(units)}, [])
    config = Siglip2Config(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": POSITIONS,
            "projection_size": 32,
        },
        vision_config={**SMALL, "num_patches": 16, "patch_size": 8},
    )
    random_model(Siglip2Model, config, spread=1.5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return str(folder)


def save_metaclip2(folder: Path) -> str:
    """MetaCLIP 2, whose tokenizer is XLM-RoBERTa's."""
    letters = sorted(set(WORDS) - {" "})
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary: list[Any] = [(unit, 0.0) for unit in special]
    vocabulary += [(unit, -3.0) for unit in ("▁", *letters)]
    vocabulary += [(f"▁{word}", -2.0) for word in WORDS.split() if len(word) > 1]
    tokenizer = XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)])
    config = MetaClip2Config(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": POSITIONS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**SMALL, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    random_model(MetaClip2Model, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return str(folder)


SAVED: dict[str, Callable[[Path], str]] = {
    "clip": save_clip,
    "siglip": save_siglip,
    "siglip2": save_siglip2,
    "metaclip_2": save_metaclip2,
}
"""How a tiny model of each family is saved, by its `model_type`."""
