"""CoCa (Yu et al., arXiv 2205.01917): contrast and captions from one image-text decoder.

Shapes: n images, L tokens of a text, P patches, q queries, D width.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image.decode import CLIP_MEAN, CLIP_STD, Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.clip import MAX_SCALE, info_nce
from models.objectives.distributed import balance
from models.objectives.lm import lm_labels, lm_loss
from models.objectives.masking import IGNORED
from models.objectives.model_folder import (
    first_and_last,
    load_model,
    load_tokenizer,
    side_of,
    write_folder,
)
from models.objectives.sizes import BLIP_SIZES
from models.objectives.transformer import Attention, Block, Blocks, causal_mask

__all__ = ["Coca", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A CoCa by its numbers; image and text have the same width, as in the paper.

    Attributes:
        width: Width of all tokens and embeddings.
        heads: Heads of every attention.
        vision_layers: Layers of the image encoder.
        text_layers: Layers of each half of the decoder.
        image_size: Side of the square input, in pixels.
        patch: Side of a patch, in pixels.
        queries: Image tokens that the decoder looks at.
        positions: The longest text, in tokens.
        vocabulary: Number of tokens.
    """

    width: int
    heads: int
    vision_layers: int
    text_layers: int
    image_size: int
    patch: int
    queries: int
    positions: int
    vocabulary: int


class Pooler(nn.Module):
    """Queries that look at image tokens once: one attention, no residual, no MLP."""

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.attn = Attention(width, heads)
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, q, D) of tokens (n, M, D)."""
        query = self.ln_q(self.query).expand(len(x), -1, -1)
        pooled: Tensor = self.attn(query, self.ln_k(x))
        return pooled


class Vision(nn.Module):
    """The image encoder: a ViT, and two poolers in cascade."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, side = shape.width, shape.image_size // shape.patch
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(side * side + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, shape.heads, shape.vision_layers)
        self.attn_pool = Pooler(width, shape.heads, shape.queries)
        self.attn_pool_contrastive = Pooler(width, shape.heads, 1)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, width))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding (n, D) of images, and the tokens (n, q, D) that the decoder looks at."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        tokens = self.attn_pool(self.ln_post(x))
        pooled: Tensor = self.attn_pool_contrastive(tokens)[:, 0] @ self.proj
        return pooled, tokens


class Text(nn.Module):
    """The lower half of the decoder: causal, without cross-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.token_embedding = nn.Embedding(shape.vocabulary, width)
        self.cls_emb = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(shape.positions + 1, width))
        self.transformer = Blocks(width, shape.heads, shape.text_layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.cls_emb, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for module in self.modules():
            if isinstance(module, Block):
                module.start(shape.text_layers)

    def forward(self, tokens: Tensor, is_text: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding (n, D) of texts (n, L), and their tokens (n, L, D).

        The embedding is read at a token behind the text. It has the last position whatever the
        padding, and sees no padding; no token sees it.
        """
        n, length = tokens.shape
        position = self.positional_embedding
        x = self.token_embedding(tokens) + position[:length]
        x = torch.cat([x, (self.cls_emb + position[-1]).expand(n, 1, -1)], 1)
        may_look = F.pad(is_text, (0, 1), value=True)[:, None, None]
        x = self.transformer(x, may_look & causal_mask(length + 1, tokens.device))
        embedded: Tensor = self.ln_final(x[:, -1]) @ self.text_projection
        return embedded, x[:, :-1]


class Decoder(nn.Module):
    """The upper half of the decoder: causal, each layer with cross-attention to the image."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, layers = shape.width, shape.text_layers
        self.resblocks = nn.ModuleList([Block(width, shape.heads) for _ in range(layers)])
        self.cross_attn = nn.ModuleList(
            [Block(width, shape.heads, is_cross=True) for _ in range(layers)]
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, shape.vocabulary))
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for module in self.modules():
            if isinstance(module, Block):
                module.start(layers)

    def forward(self, images: Tensor, x: Tensor) -> Tensor:
        """Tokens (n, L, D), normed, after a look at images (n, q, D)."""
        mask = causal_mask(x.shape[1], x.device)
        for block, cross in zip(self.resblocks, self.cross_attn, strict=True):
            x = cross(block(x, mask=mask), images)
        out: Tensor = self.ln_final(x)
        return out


class Coca(Objective):
    """A CoCa with its losses.

    Args:
        shape: Its numbers.
        tokenizer: Begins and ends each text with a token, such as BERT's.

    Attributes:
        contrastive_weight: Weight of the contrastive loss, 1 in the paper.
        caption_weight: Weight of the captioning loss, 2 in the paper.
    """

    architecture = "CoCa"

    def __init__(self, shape: Shape, tokenizer: Any) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizer = tokenizer
        self.begin, self.end = first_and_last(tokenizer)
        self.pad: int = tokenizer.pad_token_id
        self.max_text = shape.positions
        self.contrastive_weight, self.caption_weight = 1.0, 2.0
        self.preprocess = Preprocess(size=shape.image_size)
        self.visual = Vision(shape)
        self.text = Text(shape)
        self.text_decoder = Decoder(shape)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        patch: int = 16,
        queries: int = 256,
        positions: int = 76,
    ) -> Self:
        """Build from a size or a folder of `write`.

        Args:
            model: A name in `BLIP_SIZES` (random weights from torch's generator), a folder, or a
                name on the Hugging Face hub.
            revision: Revision of a name on the hub.
            tokenizer: A folder or name; required for a size.
            image_size: Side in pixels.
            patch: Side of a patch, for a size.
            queries: Image tokens that the decoder looks at, for a size.
            positions: The longest text, for a size.

        Raises:
            ValueError: The settings do not fit the model; the message names the field.
        """
        name = os.fspath(model)
        if name in BLIP_SIZES:
            size, reader = BLIP_SIZES[name], load_tokenizer(tokenizer, name)
            side = side_of(size, image_size, patch)
            shape = Shape(
                width=size.vision_width,
                heads=size.vision_heads,
                vision_layers=size.vision_layers,
                text_layers=size.text_layers,
                image_size=side,
                patch=patch,
                queries=queries,
                positions=positions,
                vocabulary=len(reader),
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

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (n, D) of (n, 3, S, S)."""
        return F.normalize(self.visual(pixels)[0].float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, D) of texts."""
        return F.normalize(self.text(tokens, tokens != self.pad)[0].float(), dim=-1)

    def remember(self, pixels: Tensor) -> Tensor:
        """The image tokens (n, q, D) that `next_logits` looks at."""
        tokens: Tensor = self.visual(pixels)[1]
        return tokens

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, V), float32, of the token after texts (n, L) without padding."""
        read = self.text(tokens, torch.ones_like(tokens, dtype=torch.bool))[1]
        logits: Tensor = self.text_decoder(memory, read)[:, -1] @ self._words
        return logits.float()

    @property
    def _words(self) -> Tensor:
        words: Tensor = self.text_decoder.text_projection
        return words

    def logged(self) -> dict[str, float]:
        """The temperature of contrast."""
        return {"temperature": math.exp(-self.logit_scale.item())}

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses, `contrast` and `caption`, weighted; one of weight 0 is left out.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_SCALE)
        images, memory = self.visual(batch.pixels)
        texts, read = self.text(batch.texts, batch.texts != self.pad)
        losses = {}
        if self.contrastive_weight:
            with torch.autocast(images.device.type, enabled=False):
                images, texts = (F.normalize(one.float(), dim=-1) for one in (images, texts))
                loss = info_nce(images, texts, self.logit_scale.exp())
            losses["contrast"] = self.contrastive_weight * loss
        if self.caption_weight:
            labels = lm_labels(batch.texts, self.pad)
            asked = labels != IGNORED
            hidden = self.text_decoder(memory, read[:, :-1])[asked]
            loss = lm_loss(hidden @ self._words, labels[asked], 0.0)
            loss = loss * balance(int(asked.sum()), loss.device)
            losses["caption"] = self.caption_weight * loss
        return losses

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what loads the folder."""
        return (
            "transformers has no CoCa. `capfilt evaluate` and the stages caption and filter run "
            "this folder; so does open_clip (`open_clip.create_model('local-dir:FOLDER')`, then "
            "`model.text.correct_cls_mask = True`, with texts padded to "
            f"{self.shape.positions} tokens). Texts are read as the tokenizer makes them, its "
            "first and last tokens included."
        )

    def write(self, folder: Path) -> None:
        """Write config.json, open_clip_config.json, the weights, tokenizer and preprocessing."""
        shape = self.shape
        write_folder(folder, self.architecture, dataclasses.asdict(shape), self.state_dict())
        self.tokenizer.save_pretrained(folder)
        self.preprocess.save(folder)
        text = {
            "context_length": shape.positions,
            "vocab_size": shape.vocabulary,
            "width": shape.width,
            "heads": shape.heads,
            "layers": shape.text_layers,
        }
        vision = {
            "image_size": shape.image_size,
            "patch_size": shape.patch,
            "width": shape.width,
            "head_width": shape.width // shape.heads,
            "layers": shape.vision_layers,
            "attentional_pool": "cascade",
            "attn_pooler_queries": shape.queries,
            "attn_pooler_heads": shape.heads,
            "output_tokens": True,
        }
        model = {
            "embed_dim": shape.width,
            "vision_cfg": vision,
            "text_cfg": {
                **text,
                "embed_cls": True,
                "output_tokens": True,
                "pad_id": self.pad,
            },
            "multimodal_cfg": text,
            "custom_text": True,
        }
        preprocess = {"size": shape.image_size, "mean": CLIP_MEAN, "std": CLIP_STD}
        preprocess |= {"interpolation": "bicubic", "resize_mode": "squash"}
        whole = {"model_cfg": model, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(
            json.dumps(whole, indent=2) + "\n", encoding="utf-8"
        )
