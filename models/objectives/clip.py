"""CLIP (Radford et al., arXiv 2103.00020): symmetric InfoNCE on stock `CLIPModel`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

from models.attention import pick_patches
from models.image.decode import CLIP_MEAN, CLIP_STD
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch, tokenize
from models.objectives.distributed import gather_with_gradient, rank
from models.objectives.features import Features
from models.objectives.sizes import CLIP_SIZES, clip_config, shaped
from models.objectives.start import Shape, Start
from models.objectives.towers import put_clip, size_of_clip

__all__ = ["Contrastive", "info_nce"]

MAX_SCALE = math.log(100)


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The symmetric contrastive loss of n pairs against the pairs of all ranks.

    Args:
        images: Unit embeddings (n, d).
        texts: Unit embeddings (n, d), row i of image i.
        scale: The inverse of the temperature.

    Returns:
        The mean over images and texts of the cross-entropy with their true partner.
    """
    own = torch.arange(len(images), device=images.device) + rank() * len(images)
    all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
    by_image = F.cross_entropy(scale * images @ all_texts.T, own)
    by_text = F.cross_entropy(scale * texts @ all_images.T, own)
    return (by_image + by_text) / 2


class Contrastive(Objective):
    """A `CLIPModel` with its loss.

    The logarithm of the scale is trained from ln(1 / 0.07) and kept at or below ln 100.

    Args:
        model: The stock model.
        tokenizer: Ends each text with the token that the model's config calls its eos.

    Attributes:
        mask_patches: The share of an image's patches that is hidden in training (FLIP, arXiv
            2212.00794).
        features: Cache of a frozen image encoder's features, if they are the same in every step.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.mask_patches = 0.0
        self.features: Features | None = None
        self._recomputes = False
        self.pad: int = tokenizer.pad_token_id

    @property
    def recompute(self) -> bool:
        """Whether the backward pass computes layers again, to save memory."""
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
        """Temperature: the divisor of the cosines."""
        return torch.exp(-self.model.logit_scale.detach())

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        start: Start | None = None,
        shape: Shape | None = None,
    ) -> Self:
        """Build from a size, a folder of `write`, or a stock CLIP model.

        Args:
            model: A name in `CLIP_SIZES` (random weights from torch's generator), a folder, or a
                name on the Hugging Face hub.
            tokenizer: A folder or name; required for a size. CLIP's own, or BERT's.
            image_size: Side in pixels; that of the model where it is not a size.
            start: CLIPs whose encoders and projections a size takes over.
            shape: Numbers that a size has in the place of its own.

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
        size, towers = size_of_clip(start or Start(), shaped(CLIP_SIZES, name, shape))
        if "vision" in towers and image_size not in (None, size.image_size):
            raise ValueError(
                f"train.image_size must be {size.image_size}, that of start.vision, "
                f"got {image_size}"
            )
        built = CLIPModel(clip_config(size, reader, image_size=image_size))
        put_clip(built, towers)
        return cls(built, reader)

    def parts(self) -> dict[str, nn.Module]:
        """The encoders with their projections."""
        names = {
            "vision": ("vision_model", "visual_projection"),
            "text": ("text_model", "text_projection"),
        }
        own = dict(self.model.named_children())
        return {
            part: nn.ModuleList(own[name] for name in some if name in own)
            for part, some in names.items()
        }

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): texts with their first and last tokens, cut to `max_tokens`, padded."""
        limit = self.model.config.text_config.max_position_embeddings
        return tokenize(self.tokenizer, texts, min(max_tokens, limit))

    def embed_images(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Unit embeddings (n, d) of (n, 3, S, S), or of the patches `kept` (n, k) of them."""
        vision = self.model.vision_model
        x = vision.embeddings(pixels)
        if kept is not None:
            x = pick_patches(x, kept)
        x = vision.encoder(inputs_embeds=vision.pre_layrnorm(x)).last_hidden_state
        seen = self.model.visual_projection(vision.post_layernorm(x[:, 0]))
        return F.normalize(seen.float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, d); attention is causal, so padding behind the end is not seen."""
        read = self.model.get_text_features(input_ids=tokens).pooler_output
        return F.normalize(read.float(), dim=-1)

    def encode(self, batch: Batch, step: Step) -> Tensor:
        """Unit embeddings (n, d) of the images of a batch, in training with patches hidden."""
        if self.features is not None and self.training:
            return self.features(batch.image_ids, batch.pixels, self.embed_images)
        patch, masked = self.model.config.vision_config.patch_size, self.mask_patches
        kept = batch.kept_patches(patch, masked if self.training else 0.0, step.generator)
        return self.embed_images(batch.pixels, kept)

    def logged(self) -> dict[str, float]:
        """The temperature of contrast."""
        return {"temperature": self.temperature.item()}

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss, `clip`.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_SCALE)
        images = self.encode(batch, step)
        texts = self.embed_texts(batch.texts)
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
