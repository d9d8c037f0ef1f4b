"""SimVLM (Wang et al., arXiv 2108.10904): prefix language modelling of an image and its text.

Shapes: n images, P patches, L tokens of a text without the first, D width.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.image.decode import Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.distributed import balance
from models.objectives.lm import lm_loss
from models.objectives.masking import IGNORED
from models.objectives.model_folder import (
    first_and_last,
    load_model,
    load_tokenizer,
    side_of,
    write_folder,
)
from models.objectives.sizes import BLIP_SIZES
from models.objectives.transformer import Blocks, DecoderBlock, causal_mask

__all__ = ["Shape", "SimVLM"]

PATCH = 16
"""Pixels a side that become one image token: the stem and two stages halve them four times."""

NORM_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A SimVLM by its numbers.

    Attributes:
        width: Width of all tokens.
        heads: Heads of every attention.
        layers: Layers of the encoder, and as many of the decoder.
        stem: Channels of the first convolution; the stages have 4, 8 and 16 times as many.
        conv_blocks: Blocks in each stage.
        image_size: Side of the square input, in pixels.
        positions: The longest text, in tokens.
        vocabulary: Number of tokens.
        spread: Standard deviation of new weights.
        prompt: Text that captions continue.
    """

    width: int
    heads: int
    layers: int
    stem: int
    conv_blocks: tuple[int, int, int]
    image_size: int
    positions: int
    vocabulary: int
    spread: float
    prompt: str = ""


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(1, min(NORM_GROUPS, channels // 4))
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


class Bottleneck(nn.Module):
    """A bottleneck block of a ResNet, with group norms."""

    def __init__(self, entering: int, inner: int, stride: int) -> None:
        super().__init__()
        leaving = 4 * inner
        self.path = nn.Sequential(
            nn.Conv2d(entering, inner, 1, bias=False),
            _norm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False),
            _norm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, leaving, 1, bias=False),
            _norm(leaving),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or entering != leaving:
            self.shortcut = nn.Sequential(
                nn.Conv2d(entering, leaving, 1, stride, bias=False), _norm(leaving)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features after the block."""
        return torch.relu(self.path(x) + self.shortcut(x))


def conv_stage(stem: int, blocks: tuple[int, int, int], width: int) -> nn.Sequential:
    """The first convolution and the first three stages of a ResNet, and a projection."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, stem, 7, 2, padding=3, bias=False),
        _norm(stem),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    entering = stem
    for stage, number in enumerate(blocks):
        inner = stem * 2**stage
        for block in range(number):
            layers.append(Bottleneck(entering, inner, 2 if stage and not block else 1))
            entering = 4 * inner
    return nn.Sequential(*layers, nn.Conv2d(entering, width, 1))


class SimVLM(Objective):
    """An encoder of images and prefixes and a decoder of the rest, with its loss.

    Args:
        shape: Its numbers.
        tokenizer: Begins and ends each text with a token, such as BERT's.
    """

    architecture = "SimVLM"

    def __init__(self, shape: Shape, tokenizer: Any) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizer = tokenizer
        self.prompt = shape.prompt
        self.begin, self.end = first_and_last(tokenizer)
        self.pad: int = tokenizer.pad_token_id
        self.max_text = shape.positions
        self.preprocess = Preprocess(size=shape.image_size)
        width, patches = shape.width, (shape.image_size // PATCH) ** 2
        self.stem = conv_stage(shape.stem, shape.conv_blocks, width)
        self.patch_positions = nn.Parameter(torch.empty(patches, width))
        self.words = nn.Embedding(shape.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(shape.positions, width))
        self.encoder = Blocks(width, shape.heads, shape.layers)
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            [DecoderBlock(width, shape.heads) for _ in range(shape.layers)]
        )
        self.decoder_norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=shape.spread)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        conv_blocks: tuple[int, ...] = (3, 4, 23),
        positions: int = 64,
        prompt: str | None = None,
    ) -> Self:
        """Build from a size or a folder of `write`.

        Args:
            model: A name in `BLIP_SIZES`, a folder, or a name on the Hugging Face hub.
            revision: Revision of a name on the hub.
            tokenizer: A folder or name; required for a size.
            image_size: Side in pixels.
            conv_blocks: Blocks in each stage of the ResNet, for a size.
            positions: The longest text, for a size.
            prompt: Text that captions continue; that of the folder by default.

        Raises:
            ValueError: The settings do not fit the model; the message names the field.
        """
        name = os.fspath(model)
        if name in BLIP_SIZES:
            size, reader = BLIP_SIZES[name], load_tokenizer(tokenizer, name)
            side = side_of(size, image_size, PATCH)
            first, second, third = conv_blocks
            shape = Shape(
                width=size.text_width,
                heads=size.text_heads,
                layers=size.text_layers,
                stem=max(8, size.text_width // 12),
                conv_blocks=(first, second, third),
                image_size=side,
                positions=positions,
                vocabulary=len(reader),
                spread=size.spread,
                prompt=prompt or "",
            )
            return cls(shape, reader)

        def shape_of(settings: dict[str, Any]) -> Shape:
            first, second, third = settings.pop("conv_blocks")
            shape = Shape(**settings, conv_blocks=(first, second, third))
            return shape if prompt is None else dataclasses.replace(shape, prompt=prompt)

        return load_model(
            cls,
            shape_of,
            name,
            cls.architecture,
            revision=revision,
            tokenizer=tokenizer,
            image_size=image_size,
        )

    def see(self, pixels: Tensor) -> Tensor:
        """Image tokens (n, P, D) with their positions, before the encoder."""
        tokens: Tensor = self.stem(pixels).flatten(2).transpose(1, 2) + self.patch_positions
        return tokens

    def encode(self, seen: Tensor, prefix: Tensor, is_prefix: Tensor) -> Tensor:
        """Encode image tokens and the first words of texts, with full attention.

        Args:
            seen: (n, P, D).
            prefix: int64 (n, L).
            is_prefix: bool (n, L), false for words that are not part of the prefix.
        """
        words = self.words(prefix) + self.positions[: prefix.shape[1]]
        mask = nn.functional.pad(is_prefix, (seen.shape[1], 0), value=True)[:, None, None]
        encoded: Tensor = self.encoder_norm(self.encoder(torch.cat([seen, words], 1), mask))
        return encoded

    def decode(self, encoded: Tensor, tokens: Tensor, places: Tensor, is_there: Tensor) -> Tensor:
        """Hidden states (n, M, D) of the words that follow the prefix.

        Args:
            encoded: (n, K, D).
            tokens: int64 (n, M); the first is the token that begins a text.
            places: int64 (n, M), the positions of the tokens in the text.
            is_there: bool (n, K), true where `encoded` may be attended to.
        """
        x = self.words(tokens) + self.positions[places]
        mask = causal_mask(tokens.shape[1], tokens.device)
        for block in self.decoder:
            x = block(x, encoded, mask, is_there[:, None, None])
        hidden: Tensor = self.decoder_norm(x)
        return hidden

    def remember(self, pixels: Tensor) -> Tensor:
        """The encoded image (n, P, D), without a prefix."""
        none = torch.zeros(len(pixels), 0, dtype=torch.long, device=pixels.device)
        return self.encode(self.see(pixels), none, none.bool())

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, V), float32, of the token after texts (n, M) that begin with the first."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        is_there = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
        hidden = self.decode(memory, tokens, places, is_there)
        return (hidden[:, -1] @ self.words.weight.T).float()

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss, `prefix_lm`: the mean over the words behind the prefixes, and the ends.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        words = batch.texts[:, 1:]  # without the token that begins every text
        lengths = (words != self.pad).sum(1)
        chances = batch.chances((1,), step.generator)[:, 0]
        prefixes = (chances * lengths).long()  # from 0 to all words but the end
        places = torch.arange(words.shape[1], device=words.device)
        is_prefix = places < prefixes[:, None]
        encoded = self.encode(self.see(batch.pixels), words, is_prefix)
        at = (prefixes[:, None] + places).clamp(max=words.shape[1] - 1)
        labels = words.gather(1, at)
        is_over = prefixes[:, None] + places >= lengths[:, None]
        read = torch.cat([torch.full_like(labels[:, :1], self.begin), labels[:, :-1]], 1)
        patches = encoded.shape[1] - words.shape[1]
        is_there = nn.functional.pad(is_prefix, (patches, 0), value=True)
        labels = labels.masked_fill(is_over, IGNORED)
        asked = labels != IGNORED
        hidden = self.decode(encoded, read, at, is_there)[asked]
        loss = lm_loss(hidden @ self.words.weight.T, labels[asked], 0.0)
        return {"prefix_lm": loss * balance(int(asked.sum()), loss.device)}

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what runs the folder."""
        return (
            "transformers has no SimVLM; `capfilt evaluate` and the stage caption run this folder. "
            f"Texts are read as the tokenizer makes them and cut to {max_text_tokens} tokens. A "
            "prompt is read by the decoder."
        )

    def write(self, folder: Path) -> None:
        """Write config.json, the weights, the tokenizer and the preprocessing."""
        settings = dataclasses.asdict(self.shape)
        write_folder(folder, self.architecture, settings, self.state_dict())
        self.tokenizer.save_pretrained(folder)
        self.preprocess.save(folder)
