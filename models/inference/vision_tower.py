"""Vision towers: models that embed images and do not read texts.

DINOv2 (arXiv:2304.07193), DINOv3 (arXiv:2508.10104), plain ViT, and separately saved image towers
of CLIP and SigLIP, as transformers loads them.

    tower = VisionTower.from_pretrained("facebook/dinov2-base")
    tower.embed_each([jpeg, junk])   # [tensor of 768 numbers, None]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from models.image.decode import open_rgb
from models.inference.batch_runner import BatchRunner
from models.inference.dual_encoder import ARCHITECTURES, DualEncoder, Pixels
from models.inference.matcher import Matcher
from models.weights import Dtype, place

__all__ = ["PROCESSORS", "VisionTower", "load_image_embedder"]

PROCESSORS: Mapping[str, Any] = {
    "clip_vision_model": CLIPImageProcessorPil,
    "dinov2": BitImageProcessorPil,
    "dinov2_with_registers": BitImageProcessorPil,
    "dinov3_vit": ViTImageProcessorPil,
    "siglip_vision_model": SiglipImageProcessorPil,
    "vit": ViTImageProcessorPil,
}
"""The image processor of each supported `model_type` in config.json."""


class VisionTower:
    """A stock vision model with its image processor, in evaluation mode.

    The embedding is the model's pooled output, usually the class token after the last norm.
    """

    def __init__(self, model: Any, processor: Any, threads: int = 4) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.batches = BatchRunner(self._open, model.device, threads, Pixels.stack)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load a model; see `Blip.from_pretrained` for the arguments.

        Raises:
            ValueError: The checkpoint is of another architecture.
        """
        kind = _kind_of(model, revision)
        if kind not in PROCESSORS:
            raise ValueError(
                f"{model!r} is a {kind}, which cannot embed images here: name a "
                f"checkpoint of one of {', '.join(sorted({*PROCESSORS, *ARCHITECTURES, 'blip'}))}"
            )
        placement = place(device, dtype, threads)
        loaded: Any = AutoModel.from_pretrained(
            model,
            revision=revision or "main",
            dtype=placement.dtype,
            use_safetensors=True,
            trust_remote_code=False,
        )
        processor = PROCESSORS[kind].from_pretrained(model, revision=revision or "main")
        return cls(loaded.to(placement.device), processor, placement.threads)

    def embed_each(
        self, images: Sequence[bytes], batch_size: int | None = None
    ) -> list[Tensor | None]:
        """See `EmbedsImages.embed_each`."""

        def embed(positions: list[int], pixels: Pixels) -> list[Tensor]:
            moved = pixels.features["pixel_values"].to(self.model.device, self.model.dtype)
            pooled = self.model(pixel_values=moved).pooler_output
            return list(functional.normalize(pooled.float(), dim=-1).cpu())

        return self.batches.map(images, embed, batch_size)

    def _open(self, image: bytes) -> dict[str, Any]:
        features = self.processor(open_rgb(image))
        return {"pixel_values": np.asarray(features["pixel_values"][0])}


def load_image_embedder(
    model: str,
    revision: str | None = None,
    device: str = "auto",
    dtype: Dtype = "auto",
    threads: int | None = None,
) -> DualEncoder | Matcher | VisionTower:
    """Load a dual encoder, BLIP's ITM model (whose ITC part is one) or a vision tower.

    Raises:
        ValueError: The checkpoint is of another architecture.
    """
    kind = _kind_of(model, revision)
    if kind in ARCHITECTURES:
        return DualEncoder.from_pretrained(model, revision, device, dtype, threads)
    if kind == "blip":
        return Matcher.from_pretrained(model, revision, device, dtype, threads)
    return VisionTower.from_pretrained(model, revision, device, dtype, threads)


def _kind_of(model: str, revision: str | None) -> str:
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    return str(config.model_type)
