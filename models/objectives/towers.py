"""Copies weights of single encoders (ViT, DeiT, BERT, BLIP, CLIP) into a new model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    BertModel,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPModel,
    DeiTModel,
    ViTModel,
)

from models.objectives.sizes import Size
from models.objectives.start import Start
from models.weights import folder_of, parts_of

__all__ = ["Towers", "put_clip", "size_of_clip"]

VIT_NAMES = (
    (r"^embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"^embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (r"^layers\.(\d+)\.layernorm_before\.", r"encoder.layers.\1.layer_norm1."),
    (r"^layers\.(\d+)\.layernorm_after\.", r"encoder.layers.\1.layer_norm2."),
    (r"^layers\.(\d+)\.attention\.o_proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^layers\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^layernorm\.", "post_layernorm."),
)
"""The names of a ViT's weights, and what they are in BLIP's image encoder."""


class Towers:
    """The encoders that a BLIP starts from.

    Args:
        start: The models of the encoders.

    Raises:
        ValueError: A model is of another kind.
    """

    def __init__(self, start: Start) -> None:
        self.vision = _load(start.vision, "vision", ("vit", "deit", "blip"))
        self.text = _load(start.text, "text", ("bert", "blip"))

    @property
    def side(self) -> int | None:
        """Side of the images that the image encoder reads, in pixels; None without one."""
        return None if self.vision is None else int(_vision_config(self.vision).image_size)

    def fit(self, size: Size) -> Size:
        """The size with the numbers of the encoders that are there."""
        if self.vision is not None:
            found = _vision_config(self.vision)
            size = dataclasses.replace(
                size,
                vision_width=found.hidden_size,
                vision_layers=found.num_hidden_layers,
                vision_heads=found.num_attention_heads,
                patch=found.patch_size,
            )
        if self.text is not None:
            found = _text_config(self.text)
            size = dataclasses.replace(
                size,
                text_width=found.hidden_size,
                text_layers=found.num_hidden_layers,
                text_heads=found.num_attention_heads,
                positions=found.max_position_embeddings,
            )
        return size

    def adapt(self, config: Any) -> None:
        """Give a `BlipConfig` the epsilons of the encoders' layer norms."""
        if self.vision is not None:
            config.vision_config.layer_norm_eps = _vision_config(self.vision).layer_norm_eps
        if self.text is not None:
            config.text_config.layer_norm_eps = _text_config(self.text).layer_norm_eps

    def put_into(self, part: Any) -> None:
        """Copy the weights into a BLIP captioner or matcher.

        Raises:
            ValueError: They have other shapes.
        """
        is_decoder = hasattr(part, "text_decoder")
        if self.vision is not None:
            _copy(_vision_weights(self.vision), part.vision_model, "vision")
        if self.text is not None:
            text = part.text_decoder.bert if is_decoder else part.text_encoder
            _copy(_text_weights(self.text), text, "text")
            if is_decoder:
                _copy(_head_weights(self.text), part.text_decoder.cls.predictions, "text")

    def masked_head(self) -> dict[str, Tensor]:
        """The weights of BERT's head of masked language modelling, where there is one."""
        return {} if self.text is None else _head_weights(self.text)


def _load(model: str | None, part: str, kinds: tuple[str, ...]) -> Any:
    """A model in float32, of one of some kinds; None for none."""
    if model is None:
        return None
    folder = next(iter(parts_of(model)), folder_of(model))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind, architectures = config.model_type, config.architectures or []
    if kind not in kinds:
        raise ValueError(
            f"train.start.{part}: {model} is a {kind}, and the objective takes {' or '.join(kinds)}"
        )
    classes: dict[str, Any] = {
        "vit": ViTModel,
        "deit": DeiTModel,
        "bert": BertForMaskedLM if "BertForMaskedLM" in architectures else BertModel,
        "blip": BlipForConditionalGeneration
        if "BlipForConditionalGeneration" in architectures
        else BlipForImageTextRetrieval,
        "clip": CLIPModel,
    }
    settings = (
        {}
        if kind in ("blip", "clip") or classes[kind] is BertForMaskedLM
        else {"add_pooling_layer": False}
    )
    return classes[kind].from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **settings
    )


def _vision_config(model: Any) -> Any:
    return getattr(model.config, "vision_config", model.config)


def _text_config(model: Any) -> Any:
    return getattr(model.config, "text_config", model.config)


def _vision_weights(model: Any) -> dict[str, Tensor]:
    """The weights of an image encoder by their names in `BlipVisionModel`."""
    if hasattr(model, "vision_model"):
        return dict(model.vision_model.state_dict())
    own = dict(model.state_dict())
    if own.pop("embeddings.distillation_token", None) is not None:
        # Position 1 belongs to DeiT's distillation token, which BLIP does not have.
        places = own["embeddings.position_embeddings"]
        own["embeddings.position_embeddings"] = torch.cat([places[:, :1], places[:, 2:]], dim=1)
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        for pattern, new in VIT_NAMES:
            renamed, is_such = re.subn(pattern, new, name)
            if is_such:
                found[renamed] = tensor
    for i in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [own[f"layers.{i}.attention.{which}_proj.{kind}"] for which in "qkv"]
            found[f"encoder.layers.{i}.self_attn.qkv.{kind}"] = torch.cat(parts)
    return found


def _text_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a text encoder by their names in BLIP's, without cross-attention if BERT's.

    BERT adds an embedding of the first segment to every token, and BLIP has no segments: it is
    added to the positions, so that a text is read as BERT reads it.
    """
    if model.config.model_type == "blip":
        decoder = getattr(model, "text_decoder", None)
        return dict((model.text_encoder if decoder is None else decoder.bert).state_dict())
    own = dict(getattr(model, "bert", model).state_dict())
    segments = own.pop("embeddings.token_type_embeddings.weight")
    own["embeddings.position_embeddings.weight"] = (
        own["embeddings.position_embeddings.weight"] + segments[:1]
    )
    return {name: tensor for name, tensor in own.items() if not name.startswith("pooler.")}


def _head_weights(model: Any) -> dict[str, Tensor]:
    """The head over the vocabulary, its tied output weights left out; nothing where there is none.

    Returns:
        `transform.dense`, `transform.LayerNorm` and `bias`.
    """
    head = getattr(model, "text_decoder", model)
    if not hasattr(head, "cls"):
        return {}
    own = head.cls.predictions.state_dict()
    return {name: tensor for name, tensor in own.items() if not name.startswith("decoder.")}


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], target: Any, part: str) -> None:
    """Copy weights by name; a vocabulary may be longer in the target, its last tokens are new."""
    own = dict(target.named_parameters())
    for name, tensor in weights.items():
        if name not in own:
            continue
        place = own[name]
        is_vocabulary = name.endswith("word_embeddings.weight") or name == "bias"
        if is_vocabulary and len(place) - len(tensor) in (0, 2):
            place = place[: len(tensor)]  # [DEC] and [ENC] are behind BERT's vocabulary
        if place.shape != tensor.shape:
            raise ValueError(
                f"train.start.{part}: {name} is {list(tensor.shape)} there, and {list(place.shape)}"
                " in the model: leave `shape` and `tokenizer` out, and they are taken from there"
            )
        place.copy_(tensor)


def size_of_clip(start: Start, size: Size) -> tuple[Size, dict[str, Any]]:
    """The size with the numbers of the CLIPs that parts start from, and these by part.

    Raises:
        ValueError: A model is no CLIP, or two of them embed in different lengths.
    """
    found = {part: _load(model, part, ("clip",)) for part, model in start.models().items()}
    lengths = {model.config.projection_dim for model in found.values()}
    if len(lengths) > 1:
        raise ValueError(f"train.start: the models embed in different lengths, {sorted(lengths)}")
    numbers: dict[str, Any] = {"embedding": lengths.pop()} if lengths else {}
    for part, model in found.items():
        config = model.config.vision_config if part == "vision" else model.config.text_config
        numbers |= {
            f"{part}_width": config.hidden_size,
            f"{part}_layers": config.num_hidden_layers,
            f"{part}_heads": config.num_attention_heads,
        }
        if part == "vision":
            numbers |= {"patch": config.patch_size, "image_size": config.image_size}
        else:
            numbers["positions"] = config.max_position_embeddings
    return dataclasses.replace(size, **numbers), found


@torch.no_grad()
def put_clip(model: Any, towers: Mapping[str, Any]) -> None:
    """Copy the encoders of other CLIPs, and their projections, into a CLIP; by part."""
    for part, source in towers.items():
        projection = "visual_projection" if part == "vision" else "text_projection"
        for name in (f"{part}_model", projection):
            getattr(model, name).load_state_dict(getattr(source, name).state_dict())
