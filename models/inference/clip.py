"""CLIP similarity (arXiv:2103.00020): how alike an image and its texts are.

clip = Clip.from_pretrained("openai/clip-vit-large-patch14")
clip.score([jpeg], [["a dog", "a cat"]])   # [[0.27, 0.18]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.image.decode import open_rgb
from models.inference.batching import BatchRunner, check_one_each
from models.weights import Dtype, place

__all__ = ["Clip"]


class Clip:
    """A stock CLIPModel with its tokenizer and image processor, in evaluation mode."""

    texts_at_once = 256

    def __init__(self, model: Any, tokenizer: Any, processor: Any, threads: int = 4) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.processor = processor
        self.device: torch.device = model.device
        self.batches = BatchRunner(self._pixels, self.device, threads)

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
        kind = AutoConfig.from_pretrained(
            model, revision=revision, trust_remote_code=False
        ).model_type
        if kind != "clip":
            raise ValueError(f"{model!r} is not a CLIPModel but a {kind}; name a CLIP checkpoint")
        placement = place(device, dtype, threads)
        loaded: Any = CLIPModel.from_pretrained(
            model,
            revision=revision or "main",
            dtype=placement.dtype,
            use_safetensors=True,
        )
        return cls(
            loaded.to(placement.device),
            AutoTokenizer.from_pretrained(
                model, revision=revision or "main", trust_remote_code=False
            ),
            CLIPImageProcessorPil.from_pretrained(model, revision=revision or "main"),
            placement.threads,
        )

    def score(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[list[float]]:
        """The cosine of each text with its image, the image seen once.

        Args:
            images: Encoded images.
            texts: Of each image, any number, cut to the model's length (77 tokens).
            batch_size: Images at a time; see `Batches.map`.

        Returns:
            For each image the cosines of its texts, in [-1, 1]; an empty list for an image that
            cannot be decoded.
        """
        check_one_each(images, texts, "list of texts")

        def compare(positions: list[int], pixels: Tensor) -> list[list[float]]:
            some = [texts[position] for position in positions]
            flat = [text for own in some for text in own]
            if not flat:
                return [[] for _ in some]
            rows = [row for row, own in enumerate(some) for _ in own]
            looks = self._see(pixels.to(self.device, non_blocking=True))
            cosines = iter((looks[rows] * self._read(flat)).sum(-1).tolist())
            return [[next(cosines) for _ in own] for own in some]

        return [found or [] for found in self.batches.map(images, compare, batch_size)]

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings (n, d) of images; see `Ranks`.

        Raises:
            ImageError: An image cannot be decoded.
        """

        def embed(positions: list[int], pixels: Tensor) -> list[Tensor]:
            return list(self._see(pixels.to(self.device, non_blocking=True)))

        return torch.stack(self.batches.map_all(images, embed, batch_size))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (m, d) of texts; see `Ranks`."""
        return self._read(list(texts))

    def _pixels(self, image: bytes) -> npt.NDArray[np.float32]:
        pixels: npt.NDArray[np.float32] = self.processor(open_rgb(image))["pixel_values"][0]
        return pixels

    def _see(self, pixels: Tensor) -> Tensor:
        seen = self.model.vision_model(pixels.to(self.model.dtype)).pooler_output
        return functional.normalize(self.model.visual_projection(seen).float(), dim=-1)

    def _read(self, texts: list[str]) -> Tensor:
        """Embeddings (texts, D) of length one, texts of about one length together."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
        embedded = torch.empty(
            len(texts), self.model.config.projection_dim, device=self.device, dtype=torch.float32
        )
        for start in range(0, len(order), self.texts_at_once):
            some = order[start : start + self.texts_at_once]
            padded = self.tokenizer.pad(
                {"input_ids": [tokens[index] for index in some]}, return_tensors="pt"
            ).to(self.device)
            read = self.model.text_model(**padded).pooler_output
            words = self.model.text_projection(read).float()
            embedded[some] = functional.normalize(words, dim=-1)
        return embedded
