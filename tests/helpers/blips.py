"""Tiny BLIPs with random weights, and pictures for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.image.decode import Preprocess

WORDS = "a picture of the red blue green big small dog cat bird house tree on in and two s ing"
SIDE = 48


def tokenizer_of(words: list[str]) -> Any:
    """A BERT tokenizer whose last two tokens are BLIP's."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "[DEC]", "[ENC]"]
    return BertTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)},
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
    )


def save_tokenizer(folder: Path, words: list[str]) -> str:
    """The folder of `tokenizer_of`."""
    tokenizer_of(words).save_pretrained(folder)
    return str(folder)


def config_of(tokenizer: Any) -> BlipConfig:
    return BlipConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 16,
            "initializer_range": 0.2,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.2,
        },
        image_text_hidden_size=16,
    )


def random_model(architecture: Any, config: Any, spread: float = 3.0, seed: int = 0) -> Any:
    """Random weights, wide enough that images and prompts change the answers."""
    torch.manual_seed(seed)
    model = architecture(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "LayerNorm" not in name and "layer_norm" not in name and weights.dim() > 1:
                weights.normal_(0, spread / weights.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                weights.normal_(0, 0.3)
    return model


def save(folder: Path, architecture: Any, tokenizer: Any) -> str:
    """A folder as `save_pretrained` leaves it."""
    model = random_model(architecture, config_of(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Preprocess(size=SIDE).save(folder)
    return str(folder)


def loaded(kind: Any, folder: Path) -> Any:
    """A captioner or matcher of random weights."""
    saved = save(folder, kind.architecture, tokenizer_of(WORDS.split()))
    return kind.from_pretrained(saved, dtype="float32")


def pixels(images: list[bytes]) -> torch.Tensor:
    return Preprocess(size=SIDE)(images)


def image_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, among them `<pad>`, `</s>`, `<unk>` and `<image>`."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def save_blip2(folder: Path) -> str:
    """A tiny BLIP-2 of random weights, as `save_pretrained` leaves it."""
    words = ["<pad>", "</s>", "<unk>", "<image>", *WORDS.split()]
    tokenizer = image_tokenizer(words)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={**small, "intermediate_size": 64, "image_size": SIDE, "patch_size": 16},
        qformer_config={**small, "intermediate_size": 64, "encoder_hidden_size": 32},
        text_config={
            **small,
            "model_type": "opt",
            "vocab_size": len(words),
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        num_query_tokens=4,
        image_token_id=3,
    )
    random_model(Blip2ForConditionalGeneration, config, spread=2.0).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return str(folder)


def save_clip(folder: Path, seed: int = 0) -> str:
    """A tiny CLIP of random weights, as `save_pretrained` leaves it."""
    letters = sorted(set(WORDS) - {" "})
    units = [*letters, *(f"{letter}</w>" for letter in letters)]
    words = [*units, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **small,
            "intermediate_size": 64,
            "vocab_size": len(words),
            "max_position_embeddings": 77,
            "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1,
        },
        vision_config={**small, "intermediate_size": 64, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    random_model(CLIPModel, config, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return str(folder)


def drawn(seed: int) -> bytes:
    """A picture of coloured clouds, as PNG."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    small.resize((80, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
