"""Captioner and matcher of a BLIP: new ones of a size, or those of a folder or the hub."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)

from models.attention import first_fused
from models.objectives.purpose import Part
from models.objectives.sizes import BLIP_SIZES, blip_config, shaped
from models.objectives.start import Shape, Start
from models.objectives.towers import Towers
from models.weights import folder_of

__all__ = ["BlipWeights", "load_weights", "new_weights", "resize_positions", "share"]

_CLASSES: dict[Part, Any] = {
    "captioner": BlipForConditionalGeneration,
    "matcher": BlipForImageTextRetrieval,
}


class BlipWeights(NamedTuple):
    """The models and the tokenizer that a `MED` is built of.

    Attributes:
        parts: The captioner, the matcher or both.
        tokenizer: BERT's, with [DEC] and [ENC].
        temperature: Temperature of the contrastive loss.
        masked_head: BERT's head of masked language modelling; empty without one.
    """

    parts: dict[Part, Any]
    tokenizer: Any
    temperature: float = 0.07
    masked_head: Mapping[str, Tensor] = {}


def new_weights(
    name: str,
    parts: Sequence[Part],
    tokenizer: str | None,
    image_size: int | None,
    start: Start,
    shape: Shape,
) -> BlipWeights:
    """Build parts of a size with random weights, or with those of the encoders in `start`.

    See `MED.from_pretrained` for the arguments.

    Raises:
        ValueError: There is no tokenizer.
    """
    tokenizer = tokenizer or (start.text and folder_of(start.text))
    if tokenizer is None:
        raise ValueError(f"model {name!r} is an architecture and needs a tokenizer")
    reader = _load_tokenizer(tokenizer)
    towers = Towers(start)
    size = towers.fit(shaped(BLIP_SIZES, name, shape))
    config = blip_config(size, reader, image_size=towers.side or image_size)
    towers.adapt(config)
    built = {part: _CLASSES[part](config) for part in parts}
    for part in built.values():
        towers.put_into(part)
    return BlipWeights(built, reader, masked_head=towers.masked_head())


def load_weights(
    name: str, parts: Sequence[Part], tokenizer: str | None, revision: str | None
) -> BlipWeights:
    """Load parts of a folder of `MED.save`, or of one plain captioner or matcher.

    See `MED.from_pretrained` for the arguments.

    Raises:
        ValueError: The folder is not BLIP's, or cannot give the parts.
    """
    loaded: dict[Part, Any] = {}
    folders: dict[Part, str] = {part: os.path.join(name, part) for part in parts}
    sources = {part: path for part, path in folders.items() if os.path.isdir(path)}
    if not sources:
        config = BlipConfig.from_pretrained(name, revision=revision or "main")
        architectures = set(config.architectures or ())
        sources = {part: name for part in parts if _CLASSES[part].__name__ in architectures}
        if not sources and len(architectures) == 1:
            other: Part = "matcher" if parts[0] == "captioner" else "captioner"
            if _CLASSES[other].__name__ in architectures:
                sources = {other: name}
    if not sources:
        raise ValueError(
            f"{name} is not a BLIP captioner or matcher, nor a folder with captioner/ and "
            f"matcher/ in it: give one of those or a size ({', '.join(BLIP_SIZES)})"
        )
    for part, path in sources.items():
        loaded[part] = _CLASSES[part].from_pretrained(
            path, revision=revision, dtype=torch.float32, use_safetensors=True
        )
    path = next(iter(sources.values()))
    reader = _load_tokenizer(tokenizer or path, revision=None if tokenizer else revision)
    config = next(iter(loaded.values())).config
    if "captioner" in parts and first_fused(config.text_config):
        raise ValueError(
            f"{name} is ALBEF's, whose first text layers look at no image: it starts no "
            f"captioner. Start from a BLIP or a size ({', '.join(BLIP_SIZES)})"
        )
    if len(reader) != config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(reader)} tokens and {name} has "
            f"{config.text_config.vocab_size}: leave the tokenizer to the model"
        )
    for part in parts:
        if part not in loaded:
            loaded[part] = _derive(part, next(iter(loaded.values())))
    built = {part: loaded[part] for part in parts}
    return BlipWeights(built, reader, float(getattr(config, "itc_temperature", 0.07)))


def share(matcher: BlipForImageTextRetrieval, captioner: BlipForConditionalGeneration) -> None:
    """Make the captioner use the matcher's modules, self-attention and the LM head excepted."""
    captioner.vision_model = matcher.vision_model
    encoder, decoder = matcher.text_encoder, captioner.text_decoder.bert
    decoder.embeddings = encoder.embeddings
    captioner.text_decoder.cls.predictions.decoder.weight = (
        encoder.embeddings.word_embeddings.weight
    )
    for source, target in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
        for name in ("crossattention", "intermediate", "output"):
            setattr(target, name, getattr(source, name))


def resize_positions(models: Sequence[Any], side: int) -> None:
    """Interpolate the position embeddings of the image encoder, [CLS] excepted, to another side.

    Args:
        models: The captioner and the matcher, which share it; None for one that is not there.
        side: The side of the images in pixels.
    """
    there = [model for model in models if model is not None]
    vision: Any = there[0].vision_model
    if vision.config.image_size == side:
        return
    embeddings = vision.embeddings
    old = embeddings.position_embedding
    patches = (side // embeddings.patch_size) ** 2
    shape = old.new_empty(1, 1 + patches, old.shape[-1])
    wide = embeddings.interpolate_pos_encoding(shape, side, side).detach()
    for config in (vision.config, *(model.config.vision_config for model in there)):
        config.image_size = side
    embeddings.position_embedding = nn.Parameter(wide)
    embeddings.image_size = side
    embeddings.num_patches = patches
    embeddings.num_positions = 1 + patches


def _load_tokenizer(name: str, revision: str | None = None) -> Any:
    """A BERT tokenizer with [DEC] and [ENC] behind its vocabulary, as BLIP extends it."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    vocabulary = tokenizer.get_vocab()
    if "[DEC]" not in vocabulary:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    if "[ENC]" not in vocabulary:
        tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    last = tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"])
    if last != [len(tokenizer) - 2, len(tokenizer) - 1]:
        raise ValueError(f"[DEC] and [ENC] must be the last two tokens of {name}, are {last}")
    return tokenizer


def _derive(part: Part, other: Any) -> Any:
    """The missing part: the other's vision and text weights, and heads of its own."""
    built = _CLASSES[part](copy.deepcopy(other.config))
    source = other.text_encoder if part == "captioner" else other.text_decoder.bert
    target = built.text_decoder.bert if part == "captioner" else built.text_encoder
    target.load_state_dict(source.state_dict())
    built.vision_model.load_state_dict(other.vision_model.state_dict())
    return built
