"""A small Llama (Touvron et al., arXiv 2302.13971) of captions, which other objectives freeze."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.distributed import balance
from models.objectives.image_prefix import end_of, layers_of
from models.objectives.language_tokenizer import language_tokenizer
from models.objectives.lm import lm_loss
from models.objectives.masking import IGNORED
from models.objectives.sizes import BLIP_SIZES

__all__ = ["Language"]

POSITIONS = 2048


class Language(Objective):
    """A `LlamaForCausalLM` with its loss.

    Args:
        model: The stock model.
        tokenizer: Made by `language_tokenizer`.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.end = end_of(tokenizer)
        self.pad: int = tokenizer.pad_token_id

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str], *, tokenizer: str | None = None
    ) -> Self:
        """Build from a size, a folder of `write`, or a stock Llama.

        Args:
            model: A name in `BLIP_SIZES`, whose text encoder gives width, layers and heads.
            tokenizer: A folder or name; required for a size.

        Raises:
            ValueError: A size without a tokenizer.
        """
        name = os.fspath(model)
        if name not in BLIP_SIZES:
            loaded: Any = LlamaForCausalLM.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True
            )
            return cls(loaded, language_tokenizer(tokenizer or name))
        if tokenizer is None:
            raise ValueError(f"train.tokenizer: model {name!r} is an architecture and needs one")
        size, reader = BLIP_SIZES[name], language_tokenizer(tokenizer)
        config = LlamaConfig(
            vocab_size=len(reader),
            hidden_size=size.text_width,
            intermediate_size=4 * size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.text_heads,
            num_key_value_heads=size.text_heads,
            max_position_embeddings=POSITIONS,
            initializer_range=size.spread,
            bos_token_id=reader.bos_token_id,
            eos_token_id=reader.eos_token_id,
            pad_token_id=reader.pad_token_id,
        )
        return cls(LlamaForCausalLM(config), reader)

    def layers(self) -> list[nn.Module]:
        """The layers of the Llama."""
        return layers_of(self.model.model)

    def prepare(self, caption: str) -> str:
        """The caption with single spaces in the place of other whitespace."""
        return " ".join(caption.split())

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): begun, cut to `max_tokens`, ended and padded."""
        words = self.tokenizer(list(texts))["input_ids"]
        rows = [[*ids[: max_tokens - 1], self.end] for ids in words]
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss, `lm`: the mean over the words of the texts and their ends."""
        tokens = batch.texts
        ended = (tokens == self.end).cumsum(1)
        is_over = (ended > 0) & ~((tokens == self.end) & (ended == 1))
        labels = tokens.masked_fill(is_over, IGNORED)[:, 1:]
        asked = labels != IGNORED
        hidden = self.model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        loss = lm_loss(self.model.lm_head(hidden[asked]), labels[asked], 0.0)
        return {"lm": loss * balance(int(asked.sum()), loss.device)}

    def write(self, folder: Path) -> None:
        """Write the model and its tokenizer, as stock `LlamaForCausalLM` loads them."""
        self.model.generation_config.eos_token_id = self.end
        self.model.generation_config.pad_token_id = self.pad
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
