"""ViLT (Kim et al., arXiv 2102.03334): one transformer of words and patches.

The modules are those of stock transformers. Two folders are written: `mlm/`, and `retrieval/`,
whose single logit is the difference of the two logits of the matching head.

Shapes: n images, L tokens of a text, P patches, D width.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForMaskedLM,
    ViTModel,
)

from models.attention import attend, pick_patches, split_heads
from models.image.decode import Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.distributed import balance, gather, gather_with_gradient, rank
from models.objectives.masking import (
    IGNORED,
    continuations,
    kept_patches,
    mask_tokens,
    whole_words,
)
from models.objectives.model_folder import load_tokenizer, side_of
from models.objectives.optimal_transport import transport_cost
from models.objectives.sizes import BLIP_SIZES

__all__ = ["Vilt"]

HALF = (0.5, 0.5, 0.5)


class Vilt(Objective):
    """A `ViltForMaskedLM` with the losses of ViLT's pre-training.

    Args:
        model: The stock model.
        tokenizer: BERT's.
        itm: The head of matching; by default a new one.

    Attributes:
        alignment: Weight of the alignment of words and patches.
        max_patches: Patches of an image that are read in training.
    """

    def __init__(self, model: Any, tokenizer: Any, itm: nn.Linear | None = None) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.tokenizer = tokenizer
        self.alignment = 0.1
        self.max_patches = 200
        self.pad: int = tokenizer.pad_token_id
        self.max_text: int = config.max_position_embeddings
        self.preprocess = Preprocess(size=config.image_size, mean=HALF, std=HALF)
        self.itm = nn.Linear(config.hidden_size, 2)
        nn.init.normal_(self.itm.weight, std=config.initializer_range)
        nn.init.zeros_(self.itm.bias)
        if itm is not None:
            self.itm = itm
        self.register_buffer(
            "continues", continuations(tokenizer, config.vocab_size), persistent=False
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        patch: int = 32,
        positions: int = 40,
        vit: str | None = None,
    ) -> Self:
        """Build from a size, a folder of `write` or its `retrieval/`, or a released ViLT.

        Args:
            model: A name in `BLIP_SIZES`, a folder, or a name on the Hugging Face hub.
            revision: Revision of a name on the hub.
            tokenizer: A folder or name; required for a size.
            image_size: Side in pixels.
            patch: Side of a patch, for a size.
            positions: The longest text, for a size.
            vit: A ViT of the size, whose layers and patches are copied.

        Raises:
            ValueError: The settings do not fit the model; the message names the field.
        """
        name, itm = os.fspath(model), None
        made: Any
        if name in BLIP_SIZES:
            size, reader = BLIP_SIZES[name], load_tokenizer(tokenizer, name)
            side = side_of(size, image_size, patch)
            config = ViltConfig(
                vocab_size=len(reader),
                hidden_size=size.vision_width,
                intermediate_size=4 * size.vision_width,
                num_hidden_layers=size.vision_layers,
                num_attention_heads=size.vision_heads,
                max_position_embeddings=positions,
                hidden_dropout_prob=size.dropout,
                attention_probs_dropout_prob=size.dropout,
                initializer_range=size.spread,
                image_size=side,
                patch_size=patch,
                pad_token_id=reader.pad_token_id,
            )
            made = ViltForMaskedLM(config)
            nn.init.trunc_normal_(made.vilt.embeddings.position_embeddings, std=0.02)
            nn.init.trunc_normal_(made.vilt.embeddings.cls_token, std=0.02)
            _copy_vit(made, vit)
        else:
            where = revision or "main"
            folder = Path(name)
            both = (folder / "retrieval").is_dir() and (folder / "mlm").is_dir()
            ranks = str(folder / "retrieval") if both else name
            made = ViltForMaskedLM.from_pretrained(
                str(folder / "mlm") if both else name,
                revision=where,
                dtype=torch.float32,
                use_safetensors=True,
            )
            ranker: Any = ViltForImageAndTextRetrieval.from_pretrained(
                ranks, revision=where, dtype=torch.float32, use_safetensors=True
            )
            if both or "Retrieval" in (made.config.architectures or [""])[0]:
                itm = nn.Linear(made.config.hidden_size, 2)
                with torch.no_grad():
                    for own, rank in zip(
                        itm.parameters(), ranker.rank_output.parameters(), strict=True
                    ):
                        own.copy_(torch.stack([-rank[0] / 2, rank[0] / 2]))
            reader = AutoTokenizer.from_pretrained(
                tokenizer or (ranks if both else name),
                revision=None if tokenizer or both else revision,
                trust_remote_code=False,
            )
        side = made.config.image_size
        if image_size not in (None, side):
            raise ValueError(f"train.image_size must be {side} for {name}, got {image_size}")
        return cls(made, reader, itm)

    def normalize(self, squares: Tensor) -> Tensor:
        """Pixels from -1 to 1, float32 (n, 3, S, S), of uint8 (n, S, S, 3)."""
        return self.preprocess.normalize(squares)

    def remember(self, pixels: Tensor) -> Tensor:
        """Patches (n, 1 + P, D), [CLS] first, with their positions and type."""
        embeddings = self.model.vilt.embeddings
        x = embeddings.patch_embeddings(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([embeddings.cls_token.expand(len(x), -1, -1), x], 1)
        x = embeddings.dropout(x + embeddings.position_embeddings)
        patches: Tensor = x + embeddings.token_type_embeddings.weight[1]
        return patches

    def read(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Hidden states (n, L + 1 + P, D) of texts and of the patches beside them."""
        vilt = self.model.vilt
        words = vilt.embeddings.text_embeddings(input_ids=tokens)
        words = words + vilt.embeddings.token_type_embeddings.weight[0]
        x = torch.cat([words, patches], 1)
        is_there = F.pad(tokens != self.pad, (0, patches.shape[1]), value=True)[:, None, None]
        for layer in vilt.encoder.layer:
            own = layer.attention.attention
            heads, dropout = own.num_attention_heads, own.dropout.p if self.training else 0.0
            normed = layer.layernorm_before(x)
            q, k, v = (split_heads(one(normed), heads) for one in (own.query, own.key, own.value))
            seen = attend(q, k, v, is_there, dropout=dropout)
            x = x + layer.attention.output.dropout(layer.attention.output.dense(seen))
            x = layer.output(layer.intermediate(layer.layernorm_after(x)), x)
        hidden: Tensor = vilt.layernorm(x)
        return hidden

    def match(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """ITM logits (n, 2), column 1 = matched, of texts and patches."""
        return self._matched(self.read(tokens, memory))

    def _matched(self, hidden: Tensor) -> Tensor:
        return self.itm(self.model.vilt.pooler(hidden)).float()  # type: ignore[no-any-return]

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses `mlm`, `itm` and, where it has a weight, `alignment`.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        patches = self.remember(batch.pixels)
        kept = self._kept(batch, patches.shape[1] - 1, step)
        if kept is not None:
            patches = pick_patches(patches, kept)
        return {"mlm": self._mlm(batch, patches, step), **self._itm(batch, patches, step)}

    def _kept(self, batch: Batch, number: int, step: Step) -> Tensor | None:
        if not self.training or number <= self.max_patches:
            return None
        chances = batch.chances((number,), step.generator)
        return kept_patches(chances, 1 - self.max_patches / number)

    def _mlm(self, batch: Batch, patches: Tensor, step: Step) -> Tensor:
        """Masked language modelling of whole words, beside the true image."""
        tokenizer, tokens = self.tokenizer, batch.texts
        chances = batch.chances((self.max_text, 3), step.generator)[:, : tokens.shape[1]]
        hidden_tokens, labels = mask_tokens(
            tokens,
            whole_words(chances, self.get_buffer("continues")[tokens]),
            special=(self.pad, tokenizer.cls_token_id, tokenizer.sep_token_id),
            mask=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
        )
        asked = labels != IGNORED
        words = self.read(hidden_tokens, patches)[:, : tokens.shape[1]][asked]
        loss = F.cross_entropy(self.model.mlm_score(words).float(), labels[asked], reduction="sum")
        return loss / max(1, len(words)) * balance(len(words), loss.device)

    def _itm(self, batch: Batch, patches: Tensor, step: Step) -> dict[str, Tensor]:
        """Matching of half the texts with their image and half with another, and alignment.

        Texts and images of all ranks are drawn from, alike on each.
        """
        ids, chances = gather(batch.image_ids), gather(batch.chances((2,), step.generator))
        n = len(ids)
        mass = (ids[:, None] != ids).double().cumsum(1)
        wrong = torch.searchsorted(mass, chances[:, 1:].double() * mass[:, -1:], right=True)
        is_true = torch.ones(n, dtype=torch.bool, device=patches.device)
        is_true[chances[:, 0].argsort()[n // 2 + n % 2 :]] = False
        is_true |= mass[:, -1] == 0  # every image of the batch is the same one
        own = torch.arange(n, device=patches.device)
        shown = torch.where(is_true, own, wrong[:, 0].clamp(max=n - 1))
        rows = slice(rank() * len(patches), (rank() + 1) * len(patches))
        is_true, seen = is_true[rows], gather_with_gradient(patches)[shown[rows]]
        hidden = self.read(batch.texts, seen)
        losses = {"itm": F.cross_entropy(self._matched(hidden), is_true.long())}
        if self.alignment:
            distance = self._distance(batch.texts, hidden)
            losses["alignment"] = self.alignment * torch.where(is_true, distance, -distance).mean()
        return losses

    def _distance(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The optimal transport (n,) between words and patches, special tokens left out."""
        length = tokens.shape[1]
        special = torch.tensor(
            [self.pad, self.tokenizer.cls_token_id, self.tokenizer.sep_token_id],
            device=tokens.device,
        )
        is_word = ~torch.isin(tokens, special)
        with torch.autocast(hidden.device.type, enabled=False):
            return transport_cost(
                hidden[:, :length].float(), hidden[:, length + 1 :].float(), is_word
            )

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what each folder gives."""
        return (
            f"Texts are cut to {max_text_tokens} tokens. `retrieval/` has one logit: its sigmoid "
            "is the probability that a text is the image's. `mlm/` guesses [MASK]. The processor "
            "makes squares, as training saw them."
        )

    def write(self, folder: Path) -> None:
        """Write `mlm/` and `retrieval/`, as stock transformers loads them."""
        ranker: Any = ViltForImageAndTextRetrieval(copy.deepcopy(self.model.config))
        ranker.vilt.load_state_dict(self.model.vilt.state_dict())
        with torch.no_grad():
            weight, bias = self.itm.weight, self.itm.bias
            ranker.rank_output.weight.copy_(weight[1:] - weight[:1])
            ranker.rank_output.bias.copy_(bias[1:] - bias[:1])
        for name, model in (("mlm", self.model), ("retrieval", ranker)):
            model.save_pretrained(folder / name)
            self.tokenizer.save_pretrained(folder / name)
            self.preprocess.save(folder / name)


def _copy_vit(model: Any, vit: str | None) -> None:
    """Copy the layers, the patches and their positions of a ViT.

    Raises:
        ValueError: It has other shapes.
    """
    if vit is None:
        return
    source: Any = ViTModel.from_pretrained(
        vit, dtype=torch.float32, use_safetensors=True, add_pooling_layer=False
    )
    target = model.vilt
    try:
        for own, layer in zip(target.encoder.layer, source.layers, strict=True):
            for name, theirs in (
                ("attention.attention.query", layer.attention.q_proj),
                ("attention.attention.key", layer.attention.k_proj),
                ("attention.attention.value", layer.attention.v_proj),
                ("attention.output.dense", layer.attention.o_proj),
                ("intermediate.dense", layer.mlp.fc1),
                ("output.dense", layer.mlp.fc2),
                ("layernorm_before", layer.layernorm_before),
                ("layernorm_after", layer.layernorm_after),
            ):
                own.get_submodule(name).load_state_dict(theirs.state_dict())
        target.layernorm.load_state_dict(source.layernorm.state_dict())
        patches = source.embeddings.patch_embeddings.state_dict()
        target.embeddings.patch_embeddings.load_state_dict(patches)
        with torch.no_grad():
            target.embeddings.cls_token.copy_(source.embeddings.cls_token)
            target.embeddings.position_embeddings.copy_(source.embeddings.position_embeddings)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"train.vit: {vit} has other shapes than the model: {error}") from error
