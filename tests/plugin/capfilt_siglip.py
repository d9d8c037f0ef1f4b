"""SigLIP (arXiv 2303.15343): each pair of an image and a text is right or wrong by itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.image.augmentation import Augment
from models.image.decode import Preprocess
from models.inference.batch_runner import BatchRunner
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.config import ObjectiveConfig, Saved
from models.objectives.distributed import gather, gather_with_gradient, rank
from models.weights import Dtype, place

__all__ = ["SiglipTraining"]

HALF = (0.5, 0.5, 0.5)
WIDTHS = {"tiny": 64, "base": 768}


@dataclass(frozen=True, kw_only=True)
class SiglipTraining(ObjectiveConfig):
    """SigLIP's training: a sigmoid loss for every pair of an image and a text of the batch.

    Attributes:
        locked: Whether the image tower is frozen (LiT, arXiv 2111.07991).
    """

    name = "siglip"
    paper = "SigLIP (arXiv 2303.15343)"
    saves: ClassVar[Mapping[str, Saved]] = {".": Saved("SiglipModel", "capfilt_siglip:Siglip")}

    batch_size: int = 32768
    lr: float = 1e-3
    beta2: float = 0.95
    weight_decay: float = 1e-4
    max_text_tokens: int = 64
    augment: Augment = "crop"
    locked: bool = False

    def build(self) -> "SiglipObjective":
        """Make the model of a size, or load one."""
        reader = AutoTokenizer.from_pretrained(self.tokenizer or self.model)
        if self.model not in WIDTHS:
            model = SiglipModel.from_pretrained(self.model, use_safetensors=True)
            return SiglipObjective(model, reader, self.locked)
        width = WIDTHS[self.model]
        tower = {"hidden_size": width, "intermediate_size": 4 * width}
        tower |= {"num_hidden_layers": width // 64, "num_attention_heads": width // 32}
        text = {"vocab_size": len(reader), "max_position_embeddings": self.max_text_tokens}
        text |= {"pad_token_id": reader.pad_token_id, "bos_token_id": None, "eos_token_id": None}
        vision = {"image_size": self.image_size, "patch_size": 16}
        model = SiglipModel(
            SiglipConfig(
                text_config={**tower, **text, "projection_size": width},
                vision_config={**tower, **vision},
            )
        )
        with torch.no_grad():
            model.logit_scale.fill_(math.log(10))
            model.logit_bias.fill_(-10)
        return SiglipObjective(model, reader, self.locked)


class SiglipObjective(Objective):
    """A stock `SiglipModel` with its loss."""

    def __init__(self, model: Any, tokenizer: Any, locked: bool) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.model.vision_model.requires_grad_(not locked)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L) with one L for all texts: SigLIP reads a text at its last place."""
        longest = self.model.config.text_config.max_position_embeddings
        how = {"padding": "max_length", "truncation": True, "max_length": longest}
        return self.tokenizer(list(texts), return_tensors="pt", **how)["input_ids"]

    def normalize(self, squares: Tensor) -> Tensor:
        """Pixels from -1 to 1."""
        return Preprocess(mean=HALF, std=HALF).normalize(squares)

    def see(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (n, d) of normalised images."""
        seen = self.model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(seen.float(), dim=-1)

    def read(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, d) of texts."""
        read = self.model.text_model(input_ids=tokens).pooler_output
        return functional.normalize(read.float(), dim=-1)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss, `sigmoid`."""
        images = self.see(batch.pixels)
        texts = gather_with_gradient(self.read(batch.texts))
        logits = images @ texts.T * self.model.logit_scale.exp() + self.model.logit_bias
        own = torch.arange(len(images), device=images.device) + rank() * len(images)
        is_own = functional.one_hot(own, len(texts)).bool()
        # Another text of the same image is neither right nor wrong.
        counts = is_own | (batch.image_ids[:, None] != gather(batch.image_ids))
        each = functional.logsigmoid(torch.where(is_own, logits, -logits))
        return {"sigmoid": -(each * counts).sum() / len(images)}

    def logged(self) -> dict[str, float]:
        """The scale and the bias of the logits."""
        scale, bias = self.model.logit_scale.item(), self.model.logit_bias.item()
        return {"scale": math.exp(scale), "bias": bias}

    def write(self, folder: Path) -> None:
        """Write the model, its tokenizer and its image processor."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        side = self.model.config.vision_config.image_size
        SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)


class Siglip:
    """Runs a `SiglipModel` for `capfilt evaluate`, which finds by its methods what to measure."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        self.objective = SiglipObjective(model, tokenizer, locked=True).eval()
        self.device = model.device
        self.batches = BatchRunner(preprocess.square, self.device, preprocess.threads)

    @classmethod
    def from_pretrained(cls, folder: str, dtype: Dtype = "auto") -> Self:
        """Load a folder that the training wrote."""
        where = place("auto", dtype, None)
        model = SiglipModel.from_pretrained(folder, dtype=where.dtype, use_safetensors=True)
        preprocess = Preprocess.from_pretrained(folder, threads=where.threads)
        return cls(model.to(where.device), AutoTokenizer.from_pretrained(folder), preprocess)

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings (n, d) of encoded images."""

        def embed(positions: list[int], squares: Tensor) -> list[Tensor]:
            pixels = self.objective.normalize(squares.to(self.device))
            return list(self.objective.see(pixels.to(self.objective.model.dtype)))

        return torch.stack(self.batches.map_all(images, embed, batch_size))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (m, d) of texts."""
        parts = torch.split(self.objective.tokenize(texts, 0), 256)
        return torch.cat([self.objective.read(part.to(self.device)) for part in parts])
