"""BLIP's multimodal mixture of encoder-decoder (Li et al., arXiv 2201.12086) and its losses.

One image encoder and one set of text weights read a text in three ways: the unimodal text encoder
([CLS]; contrast, ITC), the image-grounded text encoder ([ENC]; matching, ITM) and the
image-grounded text decoder ([DEC]; language modelling, LM). Text encoder and decoder are those of
`BlipForImageTextRetrieval` and `BlipForConditionalGeneration` of transformers, and share
everything but self-attention (Table 3). So the trained model is saved as two folders that stock
transformers loads.
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)

from models.attention import Memory, cross_attention_kv, encode_images, encode_texts, first_fused
from models.image.decode import Preprocess
from models.objectives import blip_card
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.blip_weights import load_weights, new_weights, resize_positions, share
from models.objectives.distributed import (
    balance,
    gather,
    gather_texts,
    gather_with_gradient,
    num_ranks,
    rank,
)
from models.objectives.features import Features
from models.objectives.itc import Momentum, contrast_loss, contrast_targets, hard_negatives
from models.objectives.lm import lm_labels, lm_loss
from models.objectives.masking import IGNORED
from models.objectives.purpose import Part
from models.objectives.sizes import BLIP_SIZES
from models.objectives.start import Shape, Start
from models.text.pre_caption import pre_caption

__all__ = ["MED"]

SAMPLE_TOKENS = 30
"""Longest caption of a sample for the log."""


class MED(Objective):
    """The mixture, or the one part of it that an objective trains.

    With both parts the losses are those of BLIP's pre-training (ITC + ITM + LM, 1:1:1), with the
    captioner alone those of captioner fine-tuning (LM), with the matcher alone those of filter
    fine-tuning (ITC + ITM). A batch with near misses adds a loss of matching on them (`near`).

    Under `torch.distributed` a batch is a rank's share of one batch: contrast has the candidates
    of all ranks, and the mean of the ranks' gradients is that of one rank with all pairs.

    Example:
        >>> med = MED.from_pretrained("tiny", tokenizer="tokenizer/")
        >>> med.start_momentum(queue_size=512)
        >>> losses = med(batch, Step())
        >>> sum(losses.values()).backward()
        >>> med.save("models/blip")

    Attributes:
        captioner: `BlipForConditionalGeneration`, or None.
        matcher: `BlipForImageTextRetrieval`, or None.
        tokenizer: BERT's, with [DEC] and [ENC].
        temperature: Temperature of the contrastive loss, trained; saved as `itc_temperature` in
            config.json.
        prompt: What captions begin with; saved as `caption_prompt` in config.json unless None.
        max_text_tokens: Number of tokens of a text that training reads; saved in config.json under
            this name unless None, so that the filter reads as many.
        mask_patches: Share of an image's patches that is hidden in training (FLIP, arXiv
            2212.00794); evaluation sees whole images.
        drop_path: The chance that the last layer of the image encoder is skipped for an image in
            training, falling evenly to 0 at the first (stochastic depth, arXiv 1603.09382). BLIP's
            code has 0.1 for a ViT-L and 0 for others.
        alpha: Weight of the momentum encoders' predictions in the targets of contrast.
        alpha_epochs: Epochs in which `alpha` rises from 0.
        negatives_are_local: Whether the negatives of matching come from the same stream of the
            data; they come from all ranks otherwise.
        floor: Added to the probability of each negative of matching: 1e-4 in BLIP's pre-training,
            nothing in its fine-tuning and in ALBEF.
        recompute: Whether the backward pass computes layers again, to save memory.
        features: Cache of a frozen image encoder's features, if they are the same in every step.
    """

    temperature: nn.Parameter

    slow_sees_patches: ClassVar[bool] = False
    """Whether the momentum image encoder must give the patches, too, and not [CLS] alone."""

    def __init__(
        self,
        *,
        captioner: BlipForConditionalGeneration | None = None,
        matcher: BlipForImageTextRetrieval | None = None,
        tokenizer: Any,
        label_smoothing: float = 0.1,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if captioner is None and matcher is None:
            raise ValueError("a MED needs a captioner, a matcher or both")
        self.captioner = captioner
        self.matcher = matcher
        self.tokenizer = tokenizer
        self.label_smoothing = label_smoothing
        self.prompt: str | None = None
        self.max_text_tokens: int | None = None
        self.mask_patches = 0.0
        self.prompt_tokens = 0
        self.drop_path = 0.1 if self.is_large else 0.0
        self.alpha = 0.4
        self.alpha_epochs = 0.0
        self.negatives_are_local = False
        self.floor = 0.0
        self.recompute = False
        self.features: Features | None = None
        self.momentum: Momentum | None = None
        config = self.config.text_config
        self.pad: int = config.pad_token_id
        self.dec: int = config.bos_token_id
        self.enc: int = config.vocab_size - 1
        if self.first_fused:
            self._freeze_unfused()
        if matcher is not None:
            self.temperature = nn.Parameter(torch.tensor(temperature))
        if captioner is not None and matcher is not None:
            share(matcher, captioner)

    @property
    def config(self) -> Any:
        """The `BlipConfig`, the same for both parts."""
        part = self.matcher if self.matcher is not None else self.captioner
        assert part is not None
        return part.config

    @property
    def vision(self) -> nn.Module:
        """The image encoder, the same for both parts."""
        part = self.matcher if self.matcher is not None else self.captioner
        assert part is not None
        return part.vision_model

    @property
    def first_fused(self) -> int:
        """Index of the first text layer with cross-attention; above 0 only in ALBEF."""
        return first_fused(self.config.text_config)

    @property
    def is_large(self) -> bool:
        """Whether the image encoder is as wide as a ViT-L."""
        return bool(self.config.vision_config.hidden_size >= BLIP_SIZES["large"].vision_width)

    @property
    def _recomputes(self) -> bool:
        return self.recompute and self.training and torch.is_grad_enabled()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        parts: Sequence[Part] = ("captioner", "matcher"),
        tokenizer: str | None = None,
        image_size: int | None = None,
        revision: str | None = None,
        start: Start | None = None,
        shape: Shape | None = None,
        label_smoothing: float = 0.1,
    ) -> Self:
        """Build from a size, a folder of `save`, or one plain BLIP captioner or matcher.

        A part that `model` lacks starts with the weights of the part that is there, its
        self-attention included; its heads start at random.

        Args:
            model: A name in `BLIP_SIZES` (random weights from torch's generator), a folder, or a
                name on the Hugging Face hub.
            parts: What to build.
            tokenizer: A folder or name with a BERT tokenizer; required for a size.
            image_size: Side in pixels; position embeddings are interpolated to it.
            revision: Revision of a name on the hub.
            start: Encoders that a size takes over: a ViT's, a DeiT's or a BLIP's, and a BERT's or a
                BLIP's. Its numbers give way to theirs.
            shape: Numbers that a size has in the place of its own.
            label_smoothing: Label smoothing of the LM loss.

        Raises:
            ValueError: A size without a tokenizer, a folder that is not BLIP's, or `start` or
                `shape` with a folder.
        """
        name = os.fspath(model)
        start, shape = start or Start(), shape or Shape()
        if name in BLIP_SIZES:
            weights = new_weights(name, parts, tokenizer, image_size, start, shape)
        elif start.models() or shape.numbers():
            raise ValueError(
                f"train.model: start and shape are for a size ({', '.join(BLIP_SIZES)}), and {name}"
                " has weights and numbers of its own"
            )
        else:
            weights = load_weights(name, parts, tokenizer, revision)
        med = cls(
            **weights.parts,
            tokenizer=weights.tokenizer,
            label_smoothing=label_smoothing,
            temperature=weights.temperature,
        )
        if weights.masked_head:
            med.take_head(weights.masked_head)
        if image_size is not None:
            resize_positions((med.captioner, med.matcher), image_size)
        return med

    def take_head(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of BERT's masked language modelling head; MED has no such head."""

    def parts(self) -> dict[str, nn.Module]:
        """The image encoder."""
        return {"vision": self.vision}

    def freeze_parts(self, names: Sequence[str], dtype: torch.dtype) -> None:
        """Freeze parts; the image encoder needs no momentum encoder then."""
        super().freeze_parts(names, dtype)
        if "vision" in names and self.momentum is not None:
            self.momentum.vision_model = None

    def start_momentum(self, *, queue_size: int = 57600, decay: float = 0.995) -> None:
        """Copy the contrastive encoders as momentum encoders and empty the queue."""
        if self.matcher is None:
            raise ValueError("only a MED with a matcher has a contrastive loss")
        self.momentum = Momentum(self.matcher, queue_size, decay)

    def start_prompt(self, prompt: str) -> None:
        """Put a prompt before every caption, and leave it out of the loss of the captioner."""
        self.prompt = prompt
        # [CLS] is before the prompt, and [SEP] is not part of it.
        self.prompt_tokens = len(self.tokenizer(prompt)["input_ids"]) - 1 if prompt.strip() else 0

    def _freeze_unfused(self) -> None:
        """Freeze what the text layers that do not see the image do not use."""
        assert self.matcher is not None
        self.enc = self.tokenizer.cls_token_id
        layers: Any = self.matcher.text_encoder.encoder.layer
        for layer in layers[: self.first_fused]:
            layer.attention.output.LayerNorm.requires_grad_(False)
            layer.crossattention.self.requires_grad_(False)
            layer.crossattention.output.dense.requires_grad_(False)

    def prepare(self, caption: str) -> str:
        """The prompt and the caption, prepared as in BLIP's code."""
        return (self.prompt or "") + pre_caption(caption)

    def memory(self) -> dict[str, Tensor]:
        """The momentum encoders and their queue."""
        return {} if self.momentum is None else dict(self.momentum.state_dict())

    def logged(self) -> dict[str, float]:
        """The temperature of contrast."""
        return {} if self.matcher is None else {"temperature": self.temperature.item()}

    def sample(self, pixels: Tensor) -> list[str]:
        """Captions of normalised images by greedy decoding; none without a captioner."""
        captioner: Any = self.captioner
        if captioner is None:
            return []
        prompt = self.tokenize([(self.prompt or "").strip()] * len(pixels), 64).to(pixels.device)
        longest = min(SAMPLE_TOKENS, captioner.config.text_config.max_position_embeddings)
        written = captioner.generate(pixels, prompt, max_length=longest, do_sample=False)
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: how each part must be given a text."""
        return blip_card.usage(
            has_captioner=self.captioner is not None,
            has_matcher=self.matcher is not None,
            prompt=self.prompt or "",
            max_text_tokens=max_text_tokens,
            is_fused=bool(self.first_fused),
        )

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit contrastive embeddings (n, d) of images as `encode_images` gives them."""
        assert self.matcher is not None
        return F.normalize(self.matcher.vision_proj(images[:, 0]).float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit contrastive embeddings (n, d) of texts read alone."""
        assert self.matcher is not None
        hidden = encode_texts(
            self.matcher.text_encoder,
            tokens,
            tokens != self.pad,
            first_only=True,
            recompute=self._recomputes,
        )
        return F.normalize(self.matcher.text_proj(hidden[:, 0]).float(), dim=-1)

    def match(self, tokens: Tensor, memory: Memory) -> Tensor:
        """ITM logits (n, 2), column 1 = matched, of texts and the images of `memory`."""
        assert self.matcher is not None
        tokens = tokens.clone()
        mask = tokens != self.pad
        tokens[:, 0] = self.enc
        hidden = encode_texts(
            self.matcher.text_encoder,
            tokens,
            mask,
            memory,
            first_only=True,
            recompute=self._recomputes,
        )
        logits: Tensor = self.matcher.itm_head(hidden[:, 0])
        return logits.float()

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses: `itc` and `itm` of a matcher, `lm` of a captioner.

        In training mode this also moves the momentum encoders and the queue.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        images, slow = self._encode(batch, step)
        losses: dict[str, Tensor] = {}
        memory: Memory | None = None
        if slow is not None:
            losses, memory = self._contrast_and_match(batch, images, slow, step)
        if self.captioner is not None:
            decoder = self.captioner.text_decoder
            if memory is None:
                memory = cross_attention_kv(decoder.bert, images)
            losses["lm"] = self._lm(batch, memory)
        return losses

    def _encode(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor | None]:
        """The images by the image encoder and, with a matcher, by its momentum copy.

        In training mode the momentum encoders are moved before.
        """
        patch, masked = self.config.vision_config.patch_size, self.mask_patches
        is_frozen = self.vision in self.frozen_parts
        kept = batch.kept_patches(patch, masked if self.training else 0.0, step.generator)
        layers = self.config.vision_config.num_hidden_layers
        paths, slow_paths = (
            batch.kept_paths(
                layers, self.drop_path if self.vision.training else 0.0, step.generator
            )
            for _ in range(2)
        )
        encode = functools.partial(
            encode_images, self.vision, kept=kept, paths=paths, recompute=self._recomputes
        )
        if self.features is not None and self.training:
            images = self.features(batch.image_ids, batch.pixels, encode).float()
        else:
            images = encode(batch.pixels).float()
        if self.matcher is None:
            return images, None
        assert self.momentum is not None, "start_momentum comes first"
        with torch.no_grad():
            self.temperature.clamp_(0.001, 0.5)
            if self.training:
                self.momentum.update(self._followed(), step.parts)
            if is_frozen:
                return images, images
            slow = encode_images(
                self.momentum.vision_model,
                batch.pixels,
                first_only=not self.slow_sees_patches,
                kept=kept,
                paths=slow_paths,
            )
        return images, slow

    def _followed(self) -> dict[str, nn.Parameter]:
        """The trained weights that the momentum encoders follow, by their names there."""
        assert self.matcher is not None
        return dict(self.matcher.named_parameters())

    def _contrast_and_match(
        self, batch: Batch, images: Tensor, slow: Tensor, step: Step
    ) -> tuple[dict[str, Tensor], Memory]:
        """The losses `itc` and `itm`, and the keys and values of the images."""
        assert self.matcher is not None
        losses: dict[str, Tensor] = {}
        ids = gather(batch.image_ids)
        losses["itc"], similarity = self._itc(batch, ids, images, slow, step)
        memory = cross_attention_kv(self.matcher.text_encoder, images)
        losses |= self._itm(batch, ids, images, memory, similarity, step)
        return losses, memory

    def _itc(
        self, batch: Batch, ids: Tensor, images: Tensor, slow: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """The contrastive loss, and (2, n, m) similarities: image to text, text to image.

        The m candidates are those of the batch, of all ranks, in the order of `ids`.
        """
        assert self.momentum is not None
        alpha = self.alpha * step.ramp(self.alpha_epochs)
        with torch.no_grad():
            slow_images, slow_texts = self.momentum.embed(slow, batch.texts, self.pad)
            fresh_images, fresh_texts = gather(slow_images), gather(slow_texts)
            queued_images, queued_texts, queued_ids = self.momentum.candidates()
            all_images = torch.cat([fresh_images, queued_images])
            all_texts = torch.cat([fresh_texts, queued_texts])
            all_ids = torch.cat([ids, queued_ids])
        image_features = self.embed_images(images)
        text_features = self.embed_texts(batch.texts)
        with torch.autocast(images.device.type, enabled=False):  # cosines need their precision
            with torch.no_grad():
                image_targets, text_targets = (
                    contrast_targets(batch.image_ids, all_ids, a @ b.T / self.temperature, alpha)
                    for a, b in ((slow_images, all_texts), (slow_texts, all_images))
                )
            image_to_text = image_features @ all_texts.T / self.temperature
            text_to_image = text_features @ all_images.T / self.temperature
            loss = contrast_loss(image_to_text, image_targets)
            loss = (loss + contrast_loss(text_to_image, text_targets)) / 2
        if self.training:
            self.momentum.enqueue(fresh_images, fresh_texts, ids)
        m = len(ids)
        return loss, torch.stack([image_to_text[:, :m], text_to_image[:, :m]]).detach()

    def _itm(
        self,
        batch: Batch,
        ids: Tensor,
        images: Tensor,
        memory: Memory,
        similarity: Tensor,
        step: Step,
    ) -> dict[str, Tensor]:
        """The loss `itm`, and `near` where the batch has near misses.

        In `itm`, one positive, one wrong image and one wrong text for each pair, so labels 1:2.
        """
        assert self.matcher is not None
        texts, is_local = batch.texts, self.negatives_are_local or num_ranks() == 1
        if is_local:
            first = rank() * len(texts)
            similarity = similarity[:, :, first : first + len(texts)]
            ids = batch.image_ids
        else:
            texts = gather_texts(texts, self.pad)
        chances = batch.chances((2,), step.generator)
        streams = step.streams if self.negatives_are_local else 0
        negative_texts, negative_images = (
            hard_negatives(
                similarity[i], batch.image_ids, ids, chances[:, i], self.floor, streams=streams
            )
            for i in (0, 1)
        )
        rows = torch.arange(len(batch.texts), device=batch.texts.device)
        has_image, has_text = rows[negative_images >= 0], rows[negative_texts >= 0]
        own = F.pad(batch.texts, (0, texts.shape[1] - batch.texts.shape[1]), value=self.pad)
        asked = torch.cat([own, own[has_image], texts[negative_texts[has_text]]])
        wrong = negative_images[has_image]
        if is_local:
            looked_at = [(key[wrong], value[wrong]) for key, value in memory]
        else:
            looked_at = cross_attention_kv(
                self.matcher.text_encoder, gather_with_gradient(images)[wrong]
            )
        looked_at = [
            (torch.cat([key, more_keys, key[has_text]]), torch.cat([value, more, value[has_text]]))
            for (key, value), (more_keys, more) in zip(memory, looked_at, strict=True)
        ]
        logits = self.match(asked, looked_at)
        labels = (torch.arange(len(asked), device=rows.device) < len(rows)).long()
        losses = {"itm": F.cross_entropy(logits, labels) * balance(len(labels), rows.device)}
        if batch.near_misses is not None:
            losses["near"] = self._near(batch.near_misses, memory, logits[: len(rows)])
        return losses

    def _near(self, near_misses: Tensor, memory: Memory, true: Tensor) -> Tensor:
        """Matching of texts and of their near misses with their images, each half of the loss.

        Args:
            near_misses: int64 (n, k, L); padding alone stands for none.
            memory: Keys and values of the n images.
            true: (n, 2) logits of the texts with their images.
        """
        n, k, _ = near_misses.shape
        texts = near_misses.flatten(0, 1)
        is_there = (texts != self.pad).any(1)
        texts = texts[is_there]
        rows = torch.arange(n, device=texts.device).repeat_interleave(k)[is_there]
        loss = F.cross_entropy(true, torch.ones(n, dtype=torch.long, device=texts.device))
        loss = loss * balance(n, texts.device)
        wrong = loss.new_zeros(())
        if len(rows):
            longest = int((texts != self.pad).sum(1).max())
            logits = self.match(
                texts[:, :longest], [(key[rows], value[rows]) for key, value in memory]
            )
            wrong = F.cross_entropy(logits, torch.zeros_like(rows))
        return (loss + wrong * balance(len(rows), texts.device)) / 2

    def _lm(self, batch: Batch, memory: Memory) -> Tensor:
        assert self.captioner is not None
        decoder = self.captioner.text_decoder
        tokens = batch.texts.clone()
        tokens[:, 0] = self.dec
        labels = lm_labels(tokens, self.pad, self.prompt_tokens)
        hidden = encode_texts(
            decoder.bert, tokens[:, :-1], None, memory, causal=True, recompute=self._recomputes
        )
        asked = labels != IGNORED
        loss = lm_loss(decoder.cls(hidden[asked]), labels[asked], self.label_smoothing)
        return loss * balance(int(asked.sum()), tokens.device)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write plain BLIP folders: `captioner/` and `matcher/`, or the one part itself.

        Each holds config.json, model.safetensors, the tokenizer and preprocessor_config.json.
        The folder appears whole or not at all.

        Args:
            folder: Replaced where it stands.
            dtype: Data type of the stored weights; that of the model by default.
        """
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.write(partial, dtype=dtype)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def write(self, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Write what `save` does into a folder that need not be whole."""
        parts = {"captioner": self.captioner, "matcher": self.matcher}
        built = {name: part for name, part in parts.items() if part is not None}
        for name, part in built.items():
            self._write_part(part, folder / name if len(built) > 1 else folder, dtype)

    def _write_part(self, part: Any, folder: Path, dtype: torch.dtype | None) -> None:
        if dtype is not None:
            part = copy.deepcopy(part).to(dtype)
        if self.matcher is not None:
            part.config.itc_temperature = round(self.temperature.item(), 6)
        if self.prompt is not None:
            part.config.caption_prompt = self.prompt
        if self.max_text_tokens is not None:
            part.config.max_text_tokens = self.max_text_tokens
        part.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        Preprocess(size=self.config.vision_config.image_size).save(folder)
