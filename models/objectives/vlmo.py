"""VLMo (Bao et al., arXiv 2111.02358): contrast, matching and masked words, one multiway model.

Shapes: n images, L tokens of a text, P patches with [CLS], D width.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image.decode import Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.clip import info_nce
from models.objectives.distributed import (
    balance,
    gather,
    gather_texts,
    gather_with_gradient,
)
from models.objectives.itc import hard_negatives
from models.objectives.masking import IGNORED, MaskedHead, continuations, mask_tokens, whole_words
from models.objectives.model_folder import (
    first_and_last,
    load_model,
    load_tokenizer,
    side_of,
    write_folder,
)
from models.objectives.multiway import Multiway, first_joint_of
from models.objectives.sizes import BLIP_SIZES

__all__ = ["Shape", "Vlmo"]

LAYER_SCALE = 0.1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A VLMo by its numbers.

    Attributes:
        width, layers, heads: Numbers of the transformer.
        vocabulary: Number of tokens.
        positions: The longest text, in tokens.
        image_size: Side of the square input, in pixels.
        patch: Side of a patch, in pixels.
        first_joint: The first layer with a network of both modalities.
        embedding: Length of the contrastive embeddings.
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
    embedding: int
    spread: float


class Vlmo(Objective):
    """A VLMo with its losses.

    Args:
        shape: Its numbers.
        tokenizer: BERT's.
    """

    architecture = "VLMo"

    def __init__(self, shape: Shape, tokenizer: Any) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizer = tokenizer
        first_and_last(tokenizer)
        self.pad: int = tokenizer.pad_token_id
        self.max_text = shape.positions
        self.is_text_stage = False
        self.preprocess = Preprocess(size=shape.image_size)
        numbers = dataclasses.asdict(shape)
        del numbers["embedding"]
        self.multiway = Multiway(**numbers, scale=LAYER_SCALE, is_sub_normed=False)
        self.multiway.mask_patch.requires_grad_(False)  # no patch is masked
        width, embedding = shape.width, shape.embedding
        self.image_head = nn.Linear(width, embedding, bias=False)
        self.text_head = nn.Linear(width, embedding, bias=False)
        self.joint_image_head = nn.Linear(width, embedding, bias=False)
        self.joint_text_head = nn.Linear(width, embedding, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.joint_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.pooler = nn.Linear(width, width)
        self.itm = nn.Linear(width, 2)
        for layer in (self.image_head, self.text_head, self.joint_image_head, self.joint_text_head):
            nn.init.normal_(layer.weight, std=shape.spread)
        for head in (self.pooler, self.itm):
            nn.init.normal_(head.weight, std=shape.spread)
            nn.init.zeros_(head.bias)
        self.mlm = MaskedHead(width, shape.vocabulary, shape.spread)
        self.register_buffer(
            "continues", continuations(tokenizer, shape.vocabulary), persistent=False
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        patch: int = 16,
        positions: int = 40,
        joint_layers: int = 2,
    ) -> Self:
        """Build from a size or a folder of `write`.

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
                embedding=size.vision_width,
                spread=size.spread,
            )
            return cls(shape, reader)
        return load_model(
            cls,
            lambda settings: Shape(**settings),
            name,
            cls.architecture,
            revision=revision,
            tokenizer=tokenizer,
            image_size=image_size,
        )

    def train_texts_alone(self) -> None:
        """Freeze everything but the networks, embeddings and head of texts."""
        self.is_text_stage = True
        self.requires_grad_(False)
        multiway = self.multiway
        for part in (multiway.words, multiway.types, multiway.norm, self.mlm):
            part.requires_grad_(True)
        for name, parameter in multiway.layers.named_parameters():
            if ".experts.text." in name:
                parameter.requires_grad_(True)
        multiway.word_positions.requires_grad_(True)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (n, d) of (n, 3, S, S), by the networks of images."""
        hidden = self.multiway(None, self.multiway.see(pixels))
        return F.normalize(self.image_head(hidden[:, 0]).float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, d) of texts, by the networks of texts."""
        hidden = self.multiway(self.multiway.read(tokens), None, self._mask(tokens))
        return F.normalize(self.text_head(hidden[:, 0]).float(), dim=-1)

    def remember(self, pixels: Tensor) -> Tensor:
        """Patches (n, P, D), which texts are matched with."""
        return self.multiway.see(pixels)

    def match(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """ITM logits (n, 2), column 1 = matched, of texts and patches."""
        hidden = self._fuse(tokens, memory)
        return self.itm(torch.tanh(self.pooler(hidden[:, 0]))).float()  # type: ignore[no-any-return]

    def _mask(self, tokens: Tensor, patches: int = 0) -> Tensor:
        """Bool (n, 1, 1, L + patches): false for padding."""
        return F.pad(tokens != self.pad, (0, patches), value=True)[:, None, None]

    def _fuse(self, tokens: Tensor, patches: Tensor, chances: Tensor | None = None) -> Tensor:
        """Hidden states (n, L + P, D) of texts and patches together."""
        mask = self._mask(tokens, patches.shape[1])
        hidden: Tensor = self.multiway(
            self.multiway.read(tokens), patches, mask, is_joint=True, chances=chances
        )
        return hidden

    def logged(self) -> dict[str, float]:
        """The temperatures of both contrasts."""
        return {
            "temperature": math.exp(-self.logit_scale.item()),
            "joint_temperature": math.exp(-self.joint_scale.item()),
        }

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses `itc`, `itm` and `mlm`, in equal parts; `mlm` alone of texts.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        if self.is_text_stage:
            return {"mlm": self._mlm(batch, None, step)}
        patches = self.multiway.see(batch.pixels)
        itc, similarity = self._itc(batch, patches, step)
        return {
            "itc": itc,
            "itm": self._itm(batch, patches, similarity, step),
            "mlm": self._mlm(batch, patches, step),
        }

    def _chances(self, batch: Batch, step: Step) -> Tensor | None:
        """Which layers are skipped in training."""
        if not self.training or not self.multiway.drop_path:
            return None
        return batch.chances((self.shape.layers, 2), step.generator)

    def _itc(
        self, batch: Batch, patches: Tensor, step: Step
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The mean of both contrasts, and the first one's similarities (n, m) both ways."""
        multiway, words = self.multiway, self.multiway.read(batch.texts)
        mask, losses = self._mask(batch.texts), []
        similarity = (torch.empty(0), torch.empty(0))
        for is_joint, image_head, text_head, scale in (
            (False, self.image_head, self.text_head, self.logit_scale),
            (True, self.joint_image_head, self.joint_text_head, self.joint_scale),
        ):
            chances = [self._chances(batch, step) for _ in range(2)]
            seen = multiway(None, patches, is_joint=is_joint, chances=chances[0])[:, 0]
            read = multiway(words, None, mask, is_joint=is_joint, chances=chances[1])[:, 0]
            images = F.normalize(image_head(seen).float(), dim=-1)
            texts = F.normalize(text_head(read).float(), dim=-1)
            with torch.autocast(images.device.type, enabled=False):
                losses.append(info_nce(images, texts, scale.exp()))
                if not is_joint:
                    factor = scale.detach().exp()
                    similarity = (
                        factor * images.detach() @ gather(texts).T,
                        factor * texts.detach() @ gather(images).T,
                    )
        return (losses[0] + losses[1]) / 2, similarity

    def _itm(
        self, batch: Batch, patches: Tensor, similarity: tuple[Tensor, Tensor], step: Step
    ) -> Tensor:
        """Matching of each pair, of its text with a wrong image and its image with a wrong text."""
        chances = batch.chances((2,), step.generator)
        ids = gather(batch.image_ids)
        texts = gather_texts(batch.texts, self.pad)
        wrong_texts, wrong_images = (
            hard_negatives(similarity[i], batch.image_ids, ids, chances[:, i]) for i in (0, 1)
        )
        has_image, has_text = wrong_images >= 0, wrong_texts >= 0
        own = F.pad(batch.texts, (0, texts.shape[1] - batch.texts.shape[1]), value=self.pad)
        asked = torch.cat([own, own[has_image], texts[wrong_texts[has_text]]])
        seen = gather_with_gradient(patches)[wrong_images[has_image]]
        logits = self.match(asked, torch.cat([patches, seen, patches[has_text]]))
        labels = (torch.arange(len(asked), device=asked.device) < len(own)).long()
        return F.cross_entropy(logits, labels) * balance(len(labels), labels.device)

    def _mlm(self, batch: Batch, patches: Tensor | None, step: Step) -> Tensor:
        """Masked language modelling of whole words, beside the image or alone."""
        tokenizer, tokens = self.tokenizer, batch.texts
        chances = batch.chances((self.max_text, 3), step.generator)[:, : tokens.shape[1]]
        masked, labels = mask_tokens(
            tokens,
            whole_words(chances, self.get_buffer("continues")[tokens]),
            special=(self.pad, tokenizer.cls_token_id, tokenizer.sep_token_id),
            mask=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
        )
        asked = labels != IGNORED
        skipped = self._chances(batch, step)
        if patches is None:
            words = self.multiway.read(masked)
            hidden = self.multiway(words, None, self._mask(tokens), chances=skipped)
        else:
            hidden = self._fuse(masked, patches, skipped)
        logits = self.mlm(hidden[:, : tokens.shape[1]][asked], self.multiway.words.weight)
        loss = F.cross_entropy(logits.float(), labels[asked], reduction="sum")
        return loss / max(1, len(logits)) * balance(len(logits), loss.device)

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what runs the folder."""
        return (
            "transformers has no VLMo; `capfilt evaluate` and the stage filter run this folder. "
            f"Texts are read as the tokenizer makes them and cut to {max_text_tokens} tokens."
        )

    def write(self, folder: Path) -> None:
        """Write config.json, the weights, the tokenizer and the preprocessing."""
        settings = dataclasses.asdict(self.shape)
        write_folder(folder, self.architecture, settings, self.state_dict())
        self.tokenizer.save_pretrained(folder)
        self.preprocess.save(folder)
