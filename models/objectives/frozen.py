"""Parts of trained models that an objective freezes: image encoders and language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from models.weights import parts_of

__all__ = ["Encoder", "freeze", "load_image_encoder", "only_part"]


class Encoder(NamedTuple):
    """The image encoder of a trained BLIP or BLIP-2.

    Attributes:
        config: The fields of its config.
        state: Its weights, float32, by the names that `Blip2VisionModel` has.
        is_cut: Whether it is BLIP-2's, which lacks the last layer of the encoder it comes from.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    is_cut: bool


def only_part(model: str, field: str, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """The first part of a model that holds weights, and its config.json.

    Raises:
        ValueError: No part holds weights.
    """
    folder = next(iter(parts_of(model)), model)
    path = cached_file(
        folder, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        raise ValueError(f"train.{field}: {model} has no config.json; name a trained model")
    config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return folder, config


def load_image_encoder(model: str, field: str = "vision") -> Encoder:
    """Load the image encoder of a BLIP or a BLIP-2, whose layers are the same.

    Args:
        model: A folder, one with `captioner/` and `matcher/` in it, or a name on the hub.
        field: The field of the manifest that names it, for the message.

    Raises:
        ValueError: The model is neither.
    """
    folder, config = only_part(model, field)
    kind = config.get("model_type")
    if kind not in ("blip", "blip-2"):
        raise ValueError(
            f"train.{field}: {model} is {kind!r} and not a BLIP or BLIP-2, whose image encoder "
            "BLIP-2 can look through"
        )
    architecture = getattr(transformers, config["architectures"][0])
    loaded = architecture.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    vision = loaded.vision_model
    return Encoder(vision.config.to_dict(), vision.state_dict(), kind == "blip-2")


def freeze(module: nn.Module) -> None:
    """Freeze all parameters of a module and put it in evaluation mode."""
    module.requires_grad_(False).eval()
