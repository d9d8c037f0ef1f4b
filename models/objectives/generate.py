"""BLIP-2's second stage (Li et al., arXiv 2301.12597): a Q-Former before a frozen language model.

The modules are those of stock `Blip2ForConditionalGeneration`. MiniGPT-4's first stage
(arXiv 2304.10592) is the same with the Q-Former frozen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from models.image.decode import Preprocess
from models.objectives.frozen import only_part
from models.objectives.image_prefix import ImagePrefix, placeholder
from models.objectives.language_tokenizer import language_tokenizer

__all__ = ["Generate", "load_language_model"]

_PROCESSOR: Any = Blip2Processor


def load_language_model(model: str | None, tokenizer: str | None, *marks: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, with a token that stands for an image.

    Args:
        model: A folder or a name on the Hugging Face hub.
        tokenizer: Another one than the model's: a folder or name.
        marks: Further special tokens that the tokenizer has.

    Raises:
        ValueError: None is named.
    """
    if model is None:
        raise ValueError(
            "train.language: name the language model that is built on, a folder, `train:NAME` or "
            "on the hub"
        )
    reader = language_tokenizer(tokenizer or model)
    reader.add_tokens(list(marks), special_tokens=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if len(reader) > loaded.get_input_embeddings().num_embeddings:
        loaded.resize_token_embeddings(len(reader), mean_resizing=False)
    return loaded, reader


class Generate(ImagePrefix):
    """A `Blip2ForConditionalGeneration` with the loss of BLIP-2's second stage.

    Args:
        model: The stock model.
        tokenizer: Tokenizer of its language model.
        trains_qformer: Whether the Q-Former is trained, or the projection alone.
    """

    def __init__(self, model: Any, tokenizer: Any, *, trains_qformer: bool = True) -> None:
        side = model.config.vision_config.image_size
        queries = model.config.num_query_tokens
        super().__init__(model, tokenizer, queries, Preprocess(size=side))
        self.freeze(model.vision_model, model.language_model)
        if trains_qformer:
            model.vision_model.post_layernorm.requires_grad_(True)
        else:
            self.freeze(model.qformer)
            model.query_tokens.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        language: str | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
        trains_qformer: bool = True,
    ) -> Self:
        """Build from a model of the first stage and a language model, or from a folder of `write`.

        Args:
            model: A `Blip2ForImageTextRetrieval` or a `Blip2ForConditionalGeneration`, a folder or
                a name on the Hugging Face hub.
            language: A causal language model; required for a model of the first stage.
            tokenizer: Tokenizer of the language model; its own by default.
            image_size: Side in pixels, that of the image encoder.
            trains_qformer: Whether the Q-Former is trained, or the projection alone.

        Raises:
            ValueError: The settings do not fit the models; the message names the field.
        """
        folder, config = only_part(os.fspath(model), "model")
        kind = (config.get("architectures") or [""])[0]
        made: Any
        if kind == "Blip2ForConditionalGeneration":
            made = Blip2ForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True
            )
            reader = language_tokenizer(tokenizer or folder)
        elif kind == "Blip2ForImageTextRetrieval":
            made, reader = _joined(folder, language, tokenizer)
        else:
            raise ValueError(
                f"train.model: {model} is no Blip2ForImageTextRetrieval but {kind!r}: name a model "
                f"that `objective: qformer` has trained, or a released one"
            )
        side = made.config.vision_config.image_size
        if image_size not in (None, side):
            raise ValueError(
                f"train.image_size must be {side}, that of the frozen image encoder, got "
                f"{image_size}"
            )
        return cls(made, reader, trains_qformer=trains_qformer)

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.model.language_model.base_model

    @property
    def head(self) -> nn.Module:
        """The head of the language model."""
        head: nn.Module = self.model.language_model.get_output_embeddings()
        return head

    def look(self, pixels: Tensor) -> Tensor:
        """Projected queries (n, q, D)."""
        vision = self.model.vision_model
        with torch.no_grad():
            x = vision.encoder(inputs_embeds=vision.embeddings(pixels)).last_hidden_state
        seen = self.model.qformer(
            query_embeds=self.model.query_tokens.expand(len(pixels), -1, -1),
            encoder_hidden_states=vision.post_layernorm(x),
        ).last_hidden_state
        features: Tensor = self.model.language_projection(seen)
        return features

    def write(self, folder: Path) -> None:
        """Write the model and its processor, as stock transformers loads them."""
        self.end_generation()
        self.model.config.caption_prompt = self.prompt
        self.model.save_pretrained(folder)
        side = self.preprocess.size
        images, kind = BlipImageProcessorPil(size={"height": side, "width": side}), _PROCESSOR
        kind(images, self.tokenizer, num_query_tokens=self.image_tokens).save_pretrained(folder)


def _joined(folder: str, language: str | None, tokenizer: str | None) -> tuple[Any, Any]:
    """The image side of a model of the first stage, a new projection, and a language model."""
    first: Any = Blip2ForImageTextRetrieval.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    words, reader = load_language_model(language, tokenizer)
    qformer = first.config.qformer_config.to_dict() | {"use_qformer_text_input": False}
    config = Blip2Config(
        vision_config=first.config.vision_config.to_dict(),
        qformer_config=qformer,
        text_config=words.config.to_dict(),
        num_query_tokens=first.config.num_query_tokens,
        image_token_index=placeholder(reader),
        initializer_range=first.config.initializer_range,
    )
    made: Any = Blip2ForConditionalGeneration(config)
    made.vision_model.load_state_dict(first.vision_model.state_dict())
    state = first.qformer.state_dict()
    made.qformer.load_state_dict({name: state[name] for name in made.qformer.state_dict()})
    made.language_model = words
    with torch.no_grad():
        made.query_tokens.copy_(first.query_tokens)
    return made, reader
