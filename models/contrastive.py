"""CLIP (Radford et al., arXiv 2103.00020) as a training: symmetric InfoNCE on stock `CLIPModel`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from models.images import CLIP_MEAN, CLIP_STD
from models.masking import kept_patches
from models.med import SIZES, Batch, Size, chances_of
from models.ranks import gather_with_gradient, rank

__all__ = ["CLIP_SIZES", "Contrastive", "info_nce"]

CLIP_SIZES = {
    "tiny": SIZES["tiny"],
    "base": Size(
        vision_width=768,
        vision_layers=12,
        vision_heads=12,
        text_width=512,
        text_layers=12,
        text_heads=8,
        embedding=512,
        positions=77,
    ),
    "large": Size(
        vision_width=1024,
        vision_layers=24,
        vision_heads=16,
        text_width=768,
        text_layers=12,
        text_heads=12,
        patch=14,
        embedding=768,
        positions=77,
    ),
}
"""`base` is CLIP with ViT-B/16 and `large` with ViT-L/14; `tiny` is for drawings of 64 pixels."""

MAX_SCALE = math.log(100)


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The symmetric contrastive loss of n pairs against the pairs of all ranks.

    Args:
        images: Unit embeddings (n, d).
        texts: Unit embeddings (n, d), row i of image i.
        scale: The inverse of the temperature.

    Returns:
        The mean over images and texts of the cross-entropy with the own partner.
    """
    own = torch.arange(len(images), device=images.device) + rank() * len(images)
    all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
    by_image = F.cross_entropy(scale * images @ all_texts.T, own)
    by_text = F.cross_entropy(scale * texts @ all_images.T, own)
    return (by_image + by_text) / 2


class Contrastive(nn.Module):
    """A `CLIPModel` with its loss, trained and saved as `models.med.MED` is.

    The logarithm of the scale is trained from ln(1 / 0.07) and kept at or below ln 100.

    Args:
        model: The stock model.
        tokenizer: Ends each text with the token that the model's config calls its eos.

    Attributes:
        mask_patches: The share of an image's patches that is hidden in training (FLIP, arXiv
            2212.00794).
    """

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.mask_patches = 0.0
        self._recomputes = False
        self.pad: int = tokenizer.pad_token_id

    @property
    def recompute(self) -> bool:
        """Whether layers are computed again in the backward pass, to keep less."""
        return self._recomputes

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        if wanted and not self._recomputes:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif self._recomputes and not wanted:
            self.model.gradient_checkpointing_disable()
        self._recomputes = wanted

    @property
    def temperature(self) -> Tensor:
        """What cosines are divided by."""
        return torch.exp(-self.model.logit_scale.detach())

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
    ) -> Contrastive:
        """Build from a size, a folder of `write`, or a stock CLIP model.

        Args:
            model: A name in `CLIP_SIZES` (random weights from torch's generator), a folder, or a
                name on the Hugging Face hub.
            tokenizer: A folder or name; required for a size. CLIP's own, or BERT's.
            image_size: Side in pixels; that of the model where it is not a size.

        Raises:
            ValueError: A size without a tokenizer, a tokenizer that ends texts with no token of
                its own, or an image size that the model does not have.
        """
        name = os.fspath(model)
        if name not in CLIP_SIZES:
            loaded: Any = CLIPModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
            side = loaded.config.vision_config.image_size
            if image_size not in (None, side):
                raise ValueError(f"train.image_size must be {side} for {name}, got {image_size}")
            return cls(
                loaded, AutoTokenizer.from_pretrained(tokenizer or name, trust_remote_code=False)
            )
        if tokenizer is None:
            raise ValueError(f"model {name!r} is an architecture and needs a tokenizer")
        reader = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        config = architecture(CLIP_SIZES[name], reader, image_size=image_size)
        return cls(CLIPModel(config), reader)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): texts with their first and last tokens, cut to `max_tokens`, padded."""
        limit = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(
            list(texts),
            padding="longest",
            truncation=True,
            max_length=min(max_tokens, limit),
            return_tensors="pt",
        )
        tokens: Tensor = encoded["input_ids"]
        return tokens

    def embed_images(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Unit embeddings (n, d) of (n, 3, S, S), or of the patches `kept` (n, k) of them."""
        vision = self.model.vision_model
        x = vision.embeddings(pixels)
        if kept is not None:
            x = torch.cat([x[:, :1], x[:, 1:].take_along_dim(kept[:, :, None], 1)], 1)
        x = vision.encoder(inputs_embeds=vision.pre_layrnorm(x)).last_hidden_state
        seen = self.model.visual_projection(vision.post_layernorm(x[:, 0]))
        return F.normalize(seen.float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, d); the reading is causal, so padding behind the end is not seen."""
        read = self.model.get_text_features(input_ids=tokens).pooler_output
        return F.normalize(read.float(), dim=-1)

    def forward(
        self, batch: Batch, *, alpha: float = 0.0, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The loss, `clip`.

        Args:
            batch: n pairs on the device of the model.
            alpha: Of momentum models, which CLIP has none of.
            generator: Draws the patches; in the same state on each rank.
        """
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_SCALE)
        kept = None
        if self.training and self.mask_patches:
            side = batch.pixels.shape[-1] // self.model.config.vision_config.patch_size
            kept = kept_patches(chances_of(batch, (side * side,), generator), self.mask_patches)
        images, texts = self.embed_images(batch.pixels, kept), self.embed_texts(batch.tokens)
        with torch.autocast(images.device.type, enabled=False):
            return {"clip": info_nce(images, texts, self.model.logit_scale.exp())}

    def write(self, folder: Path) -> None:
        """Write the model, its tokenizer and image processor, as stock `CLIPModel` loads them."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_SCALE)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        side = self.model.config.vision_config.image_size
        settings = {
            "crop_size": {"height": side, "width": side},
            "do_center_crop": False,  # as in training: the whole image as a square
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(CLIP_MEAN),
            "image_processor_type": "CLIPImageProcessor",
            "image_std": list(CLIP_STD),
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side},
        }
        text = json.dumps(settings, indent=2, sort_keys=True)
        (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def architecture(size: Size, tokenizer: Any, *, image_size: int | None = None) -> CLIPConfig:
    """The config of a size for a tokenizer.

    Raises:
        ValueError: No token ends a text, or it is number 2, which stock CLIP reads otherwise.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    if end is None or end == 2:
        raise ValueError(
            f"train.tokenizer: CLIP reads a text at its last token, which must have a number of "
            f"its own that is not 2, got {end}: use CLIP's tokenizer or BERT's"
        )
    return CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.text_width,
            "intermediate_size": 4 * size.text_width,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "max_position_embeddings": size.positions,
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": size.vision_width,
            "intermediate_size": 4 * size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "image_size": image_size or size.image_size,
            "patch_size": size.patch,
        },
        projection_dim=size.embedding,
        logit_scale_init_value=math.log(1 / 0.07),
    )
