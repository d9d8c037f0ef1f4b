"""BEiT-3 (Wang et al., arXiv 2208.10442): masked data modelling, one multiway model.

Shapes: n images, L tokens of a text, P patches with [CLS], D width.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image.decode import Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.clip import MAX_SCALE, info_nce
from models.objectives.distributed import balance
from models.objectives.masking import IGNORED, MaskedHead, hidden_blocks, mask_tokens
from models.objectives.model_folder import (
    first_and_last,
    load_model,
    load_tokenizer,
    side_of,
    write_folder,
)
from models.objectives.multiway import Multiway, first_joint_of
from models.objectives.purpose import Goal
from models.objectives.sizes import BLIP_SIZES

__all__ = ["Beit3", "Shape", "caption_mask", "pixels_of_patches"]

ARCHITECTURES: dict[Goal, str] = {
    "pretrain": "BEiT3",
    "retrieval": "BEiT3ForRetrieval",
    "captioning": "BEiT3ForCaptioning",
}

SMOOTHING = 0.1
"""Label smoothing of the captioning loss, as in the released code."""

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A BEiT-3 by its numbers.

    Attributes:
        width, layers, heads: Numbers of the transformer.
        vocabulary: Number of tokens.
        positions: The longest text, in tokens.
        image_size: Side of the square input, in pixels.
        patch: Side of a patch, in pixels.
        first_joint: The first layer with a network of both modalities.
        spread: Standard deviation of new weights.
    """

    width: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    image_size: int
    patch: int
    first_joint: int
    spread: float


def pixels_of_patches(pixels: Tensor, patch: int) -> Tensor:
    """The pixels (n, patches, 3 * patch * patch) of each patch, less their mean, over their spread.

    As in MAE (arXiv 2111.06377).
    """
    flat = F.unfold(pixels.float(), patch, stride=patch).transpose(1, 2)
    variance, mean = torch.var_mean(flat, -1, keepdim=True)
    return (flat - mean) / (variance + 1e-6).sqrt()


def caption_mask(is_text: Tensor, patches: int) -> Tensor:
    """Attention mask of captions, bool (n, 1, L + P, L + P): texts first, the patches behind them.

    A word sees the image, itself and the words before it; a patch sees the patches.

    Args:
        is_text: bool (n, L), false for padding.
        patches: P.
    """
    length = is_text.shape[1]
    whole = length + patches
    may_look = torch.ones(whole, whole, dtype=torch.bool, device=is_text.device)
    may_look[:length, :length] = may_look[:length, :length].tril()
    may_look[length:, :length] = False
    return may_look & F.pad(is_text, (0, patches), value=True)[:, None, None]


class Beit3(Objective):
    """A BEiT-3 with the losses of a goal.

    Args:
        shape: Its numbers.
        tokenizer: BERT's.

    Attributes:
        goal: See `Beit3Config`.
        mask_images, mask_texts, mask_pairs: See `Beit3Config`.
    """

    def __init__(self, shape: Shape, tokenizer: Any) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizer = tokenizer
        self.begin, self.end = first_and_last(tokenizer)
        self.pad: int = tokenizer.pad_token_id
        self.mask: int = tokenizer.mask_token_id
        self.max_text = shape.positions
        self.goal: Goal = "pretrain"
        self.mask_images, self.mask_texts, self.mask_pairs = 0.4, 0.15, 0.5
        self.preprocess = Preprocess(size=shape.image_size, mean=HALF, std=HALF)
        self.multiway = Multiway(**dataclasses.asdict(shape), scale=None, is_sub_normed=True)
        width = shape.width
        self.words = MaskedHead(width, shape.vocabulary, shape.spread)
        self.pixels = nn.Linear(width, 3 * shape.patch**2)
        self.image_head = nn.Linear(width, width, bias=False)
        self.text_head = nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for layer in (self.pixels, self.image_head, self.text_head):
            nn.init.trunc_normal_(layer.weight, std=shape.spread, a=-shape.spread, b=shape.spread)
        nn.init.zeros_(self.pixels.bias)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        patch: int = 16,
        positions: int = 64,
        joint_layers: int = 3,
    ) -> Self:
        """Build from a size or a folder of `write`, whatever its goal.

        Args:
            model: A name in `BLIP_SIZES`, a folder, or a name on the Hugging Face hub.
            revision: Revision of a name on the hub.
            tokenizer: A folder or name; required for a size.
            image_size: Side in pixels.
            patch: Side of a patch, for a size.
            positions: The longest text, for a size.
            joint_layers: Top layers with a network of both modalities, for a size.

        Raises:
            ValueError: The settings do not fit the model; the message names the field.
        """
        name = os.fspath(model)
        if name in BLIP_SIZES:
            size, reader = BLIP_SIZES[name], load_tokenizer(tokenizer, name)
            side = side_of(size, image_size, patch)
            shape = Shape(
                width=size.vision_width,
                layers=size.vision_layers,
                heads=size.vision_heads,
                vocabulary=len(reader),
                positions=positions,
                image_size=side,
                patch=patch,
                first_joint=first_joint_of(size, joint_layers),
                spread=size.spread,
            )
            return cls(shape, reader)
        return load_model(
            cls,
            lambda settings: Shape(**settings),
            name,
            tuple(ARCHITECTURES.values()),
            revision=revision,
            tokenizer=tokenizer,
            image_size=image_size,
        )

    def start(self, goal: Goal) -> None:
        """Set the goal, and freeze the parameters that its losses do not use."""
        self.goal = goal
        self.requires_grad_(True)
        unused: dict[Goal, tuple[str, ...]] = {
            "pretrain": ("image_head", "text_head", "logit_scale"),
            "retrieval": ("words", "pixels", "multiway.mask_patch"),
            "captioning": (
                "image_head",
                "text_head",
                "logit_scale",
                "pixels",
                "multiway.mask_patch",
            ),
        }
        for name, parameter in self.named_parameters():
            if name.startswith(unused[goal]) or self._is_idle(name, goal):
                parameter.requires_grad_(False)

    def _is_idle(self, name: str, goal: Goal) -> bool:
        """Whether a parameter belongs to a network that the goal's losses do not use."""
        found = re.match(r"multiway\.layers\.(\d+)\.experts\.(\w+)\.", name)
        if found is None or goal == "pretrain":
            return False
        is_joint = found[2] == "both"
        if goal == "retrieval":
            return is_joint
        return not is_joint and int(found[1]) >= self.shape.first_joint

    def normalize(self, squares: Tensor) -> Tensor:
        """Pixels from -1 to 1, float32 (n, 3, S, S), of uint8 (n, S, S, 3)."""
        return self.preprocess.normalize(squares)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (n, D) of (n, 3, S, S)."""
        return self._embed(None, pixels, self.image_head, None)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, D) of texts."""
        return self._embed(tokens, None, self.text_head, None)

    def _embed(
        self, tokens: Tensor | None, pixels: Tensor | None, head: nn.Linear, chances: Tensor | None
    ) -> Tensor:
        words = None if tokens is None else self.multiway.read(tokens)
        patches = None if pixels is None else self.multiway.see(pixels)
        mask = None if tokens is None else (tokens != self.pad)[:, None, None]
        hidden = self.multiway(words, patches, mask, chances=chances)
        return F.normalize(head(hidden[:, 0]).float(), dim=-1)

    def remember(self, pixels: Tensor) -> Tensor:
        """Patches (n, P, D), which captions attend to."""
        return self.multiway.see(pixels)

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, V), float32, of the token after texts (n, L): that of a [MASK] behind them."""
        asked = F.pad(tokens, (0, 1), value=self.mask)
        hidden = self._caption(asked, memory, torch.ones_like(asked, dtype=torch.bool), None)
        return self._guess(hidden[:, asked.shape[1] - 1]).float()

    def _caption(
        self, tokens: Tensor, patches: Tensor, is_text: Tensor, chances: Tensor | None
    ) -> Tensor:
        mask = caption_mask(is_text, patches.shape[1])
        words = self.multiway.read(tokens)
        hidden: Tensor = self.multiway(words, patches, mask, is_joint=True, chances=chances)
        return hidden

    def _guess(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.words(hidden, self.multiway.words.weight)
        return logits

    def logged(self) -> dict[str, float]:
        """The temperature of contrast, where it is trained."""
        if self.goal != "retrieval":
            return {}
        return {"temperature": math.exp(-self.logit_scale.item())}

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses of the goal.

        `images`, `texts`, `pair_texts` and `pair_images` of masked data modelling, each of weight
        1; `contrast` of retrieval; `caption` of captioning.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        if self.goal == "retrieval":
            return {"contrast": self._contrast(batch, step)}
        if self.goal == "captioning":
            return {"caption": self._captioning(batch, step)}
        return self._masked(batch, step)

    def _chances(self, batch: Batch, step: Step) -> Tensor | None:
        """Which layers are skipped in training."""
        if not self.training or not self.multiway.drop_path:
            return None
        return batch.chances((self.shape.layers, 2), step.generator)

    def _contrast(self, batch: Batch, step: Step) -> Tensor:
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_SCALE)
        images = self._embed(None, batch.pixels, self.image_head, self._chances(batch, step))
        texts = self._embed(batch.texts, None, self.text_head, self._chances(batch, step))
        with torch.autocast(images.device.type, enabled=False):
            return info_nce(images, texts, self.logit_scale.exp())

    def _captioning(self, batch: Batch, step: Step) -> Tensor:
        """Predict masked words and ends of texts from the image and the words before them."""
        tokens = batch.texts
        chances = batch.chances((self.max_text,), step.generator)[:, : tokens.shape[1]]
        asked = (chances < self.mask_pairs) & (tokens != self.pad)
        asked[:, 0] = False
        hidden = self._caption(
            tokens.masked_fill(asked, self.mask),
            self.multiway.see(batch.pixels),
            tokens != self.pad,
            self._chances(batch, step),
        )
        logits = self._guess(hidden[:, : tokens.shape[1]][asked]).float()
        loss = F.cross_entropy(logits, tokens[asked], reduction="sum", label_smoothing=SMOOTHING)
        return loss / max(1, len(logits)) * balance(len(logits), loss.device)

    def _masked(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Masked data modelling of images alone, texts alone, and pairs."""
        target = pixels_of_patches(batch.pixels, self.shape.patch)
        losses = {}
        side = self.shape.image_size // self.shape.patch
        hidden = self._hidden(batch, step, side)
        patches = self.multiway.see(batch.pixels, hidden)
        seen = self.multiway(None, patches, chances=self._chances(batch, step))
        losses["images"] = self._pixel_loss(seen[:, 1:], target, hidden)

        is_text = (batch.texts != self.pad)[:, None, None]
        tokens, labels = self._hide_words(batch, step, self.mask_texts)
        words = self.multiway.read(tokens)
        read = self.multiway(words, None, is_text, chances=self._chances(batch, step))
        losses["texts"] = self._word_loss(read, labels)

        tokens, labels = self._hide_words(batch, step, self.mask_pairs)
        hidden = self._hidden(batch, step, side)
        patches = self.multiway.see(batch.pixels, hidden)
        mask = F.pad(is_text, (0, patches.shape[1]), value=True)
        words = self.multiway.read(tokens)
        both = self.multiway(
            words, patches, mask, is_joint=True, chances=self._chances(batch, step)
        )
        length = tokens.shape[1]
        losses["pair_texts"] = self._word_loss(both[:, :length], labels)
        losses["pair_images"] = self._pixel_loss(both[:, length + 1 :], target, hidden)
        return losses

    def _hidden(self, batch: Batch, step: Step, side: int) -> Tensor:
        return hidden_blocks(batch.chances((), step.generator), side, self.mask_images)

    def _hide_words(self, batch: Batch, step: Step, share: float) -> tuple[Tensor, Tensor]:
        tokens = batch.texts
        chances = batch.chances((self.max_text, 3), step.generator)[:, : tokens.shape[1]]
        return mask_tokens(
            tokens,
            chances,
            special=(self.pad, self.begin, self.end),
            mask=self.mask,
            vocabulary=self.shape.vocabulary,
            share=share,
        )

    def _word_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        asked = labels != IGNORED
        logits = self._guess(hidden[asked]).float()
        loss = F.cross_entropy(logits, labels[asked], reduction="sum")
        return loss / max(1, len(logits)) * balance(len(logits), loss.device)

    def _pixel_loss(self, hidden: Tensor, target: Tensor, asked: Tensor) -> Tensor:
        return F.mse_loss(self.pixels(hidden[asked]).float(), target[asked])

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what runs the folder."""
        uses: dict[Goal, str] = {
            "pretrain": "`goal: retrieval` and `goal: captioning` tune this folder",
            "retrieval": "`capfilt evaluate` and the stage filter (`recipe: clip`) run this folder",
            "captioning": "`capfilt evaluate` and the stage caption run this folder",
        }
        return (
            f"transformers has no BEiT-3; {uses[self.goal]}. Texts are read as the tokenizer makes "
            f"them and cut to {max_text_tokens} tokens."
        )

    def write(self, folder: Path) -> None:
        """Write config.json, the weights, the tokenizer and the preprocessing."""
        settings = dataclasses.asdict(self.shape)
        write_folder(folder, ARCHITECTURES[self.goal], settings, self.state_dict())
        self.tokenizer.save_pretrained(folder)
        self.preprocess.save(folder)
