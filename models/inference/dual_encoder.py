"""Dual encoders: the similarity of an image and its texts, as the cosine of their embeddings.

CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343), SigLIP 2 (arXiv:2502.14786) and MetaCLIP 2
(arXiv:2507.22062), as transformers loads them.

    clip = DualEncoder.from_pretrained("openai/clip-vit-large-patch14")
    clip.score([jpeg], [["a dog", "a cat"]])   # [[0.27, 0.18]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPModel,
    MetaClip2Model,
    Siglip2Model,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from models.image.decode import open_rgb
from models.inference.batch_runner import BatchRunner, check_one_each
from models.weights import Dtype, place

__all__ = ["ARCHITECTURES", "Architecture", "DualEncoder", "Pixels", "Similarity"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a family of dual encoders is loaded, and how its inputs are prepared.

    Attributes:
        model: Its class in transformers.
        processor: The class of its image processor.
        pads_to_end: Whether every text is padded to the model's maximum length, and the padding is
            read as text, as in its training; otherwise padding is masked.
        is_sigmoid: Whether each pair has its own probability (the sigmoid of its logit);
            otherwise the model was trained with a softmax over the texts of a batch.
    """

    model: Any
    processor: Any
    pads_to_end: bool = False
    is_sigmoid: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "clip": Architecture(model=CLIPModel, processor=CLIPImageProcessorPil),
    "metaclip_2": Architecture(model=MetaClip2Model, processor=CLIPImageProcessorPil),
    "siglip": Architecture(
        model=SiglipModel, processor=SiglipImageProcessorPil, pads_to_end=True, is_sigmoid=True
    ),
    "siglip2": Architecture(
        model=Siglip2Model, processor=Siglip2ImageProcessorPil, pads_to_end=True, is_sigmoid=True
    ),
}
"""The families, by the `model_type` in config.json."""


class Similarity(NamedTuple):
    """The similarity of an image and a text.

    Attributes:
        cosine: The cosine of their embeddings, in [-1, 1].
        unread: The number of tokens at the end of the text that were cut off.
    """

    cosine: float
    unread: int = 0


class DualEncoder:
    """A stock dual encoder with its tokenizer and image processor, in evaluation mode."""

    texts_at_once = 256

    def __init__(self, model: Any, tokenizer: Any, processor: Any, threads: int = 4) -> None:
        self.model = model.eval().requires_grad_(False)
        self.architecture = ARCHITECTURES[model.config.model_type]
        self.tokenizer = tokenizer
        self.processor = processor
        self._special = frozenset(tokenizer.all_special_ids)
        self.max_text: int = model.config.text_config.max_position_embeddings
        self.device: torch.device = model.device
        self.batches = BatchRunner(self._open, self.device, threads, Pixels.stack)

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
        if kind not in ARCHITECTURES:
            raise ValueError(
                f"{model!r} is a {kind}, not a dual encoder of images and texts: name a "
                f"checkpoint of one of {', '.join(sorted(ARCHITECTURES))}"
            )
        architecture = ARCHITECTURES[kind]
        placement = place(device, dtype, threads)
        revision = revision or "main"
        loaded: Any = architecture.model.from_pretrained(
            model, revision=revision, dtype=placement.dtype, use_safetensors=True
        )
        return cls(
            loaded.to(placement.device),
            AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False),
            architecture.processor.from_pretrained(model, revision=revision),
            placement.threads,
        )

    def score(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[list[Similarity]]:
        """The similarity of each text to its image; each image is encoded once.

        Args:
            images: Encoded images.
            texts: Any number of texts for each image; each is cut to `max_text` tokens.
            batch_size: Images at a time; see `BatchRunner.map`.

        Returns:
            The similarities of the texts of each image; an empty list for an image that cannot be
            decoded.
        """
        check_one_each(images, texts, "list of texts")

        def compare(positions: list[int], pixels: Pixels) -> list[list[Similarity]]:
            some = [texts[position] for position in positions]
            if not any(some):
                return [[] for _ in some]
            return self.compare(self.embed_pixels(pixels), some)

        return [own or [] for own in self.batches.map(images, compare, batch_size)]

    @torch.inference_mode()
    def compare(self, embeddings: Tensor, texts: Sequence[Sequence[str]]) -> list[list[Similarity]]:
        """The similarity of each text to its image, from the embeddings of the images.

        Args:
            embeddings: (n, d) unit embeddings of n images, float32.
            texts: Any number of texts for each image; each is cut to `max_text` tokens.
        """
        flat = [text for own in texts for text in own]
        if not flat:
            return [[] for _ in texts]
        rows = [row for row, own in enumerate(texts) for _ in own]
        tokens = self._tokenize(flat)
        images = embeddings.to(self.device)[rows]
        cosines = (images * self._embed_tokens(tokens)).sum(-1)
        similarities = zip(cosines.tolist(), map(self._excess, tokens), strict=True)
        return [[Similarity(*next(similarities)) for _ in own] for own in texts]

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings (n, d) of images; see `Ranks`.

        Raises:
            ImageError: An image cannot be decoded.
        """

        def embed(positions: list[int], pixels: Pixels) -> list[Tensor]:
            return list(self.embed_pixels(pixels))

        return torch.stack(self.batches.map_all(images, embed, batch_size))

    def embed_each(
        self, images: Sequence[bytes], batch_size: int | None = None
    ) -> list[Tensor | None]:
        """See `EmbedsImages.embed_each`."""

        def embed(positions: list[int], pixels: Pixels) -> list[Tensor]:
            return list(self.embed_pixels(pixels).cpu())

        return self.batches.map(images, embed, batch_size)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (m, d) of texts; see `Ranks`."""
        return self._embed_tokens(self._tokenize(texts))

    def unread(self, texts: Sequence[str]) -> list[int]:
        """See `Embedder.unread`."""
        return [self._excess(ids) for ids in self._tokenize(texts)]

    def logits(self, cosines: Tensor) -> Tensor:
        """See `Embedder.logits`."""
        scaled: Tensor = cosines * self.model.logit_scale.float().exp()
        bias = getattr(self.model, "logit_bias", None)
        return scaled if bias is None else scaled + bias.float()

    def _open(self, image: bytes) -> dict[str, Any]:
        features = self.processor(open_rgb(image))
        return {name: np.asarray(values[0]) for name, values in features.items()}

    def embed_pixels(self, pixels: Pixels) -> Tensor:
        """Unit embeddings (n, d)."""
        moved = {
            name: values.to(self.device, non_blocking=True)
            for name, values in pixels.features.items()
        }
        moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        embedded = self.model.get_image_features(**moved).pooler_output
        return functional.normalize(embedded.float(), dim=-1)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each text."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return ids

    def _excess(self, ids: list[int]) -> int:
        return max(0, len(ids) - self.max_text)

    def _cut(self, ids: list[int]) -> list[int]:
        """The first tokens of a text, and the last one if it is a special token."""
        if len(ids) <= self.max_text:
            return ids
        end = ids[-1:] if ids[-1] in self._special else []
        return [*ids[: self.max_text - len(end)], *end]

    def _embed_tokens(self, tokens: list[list[int]]) -> Tensor:
        """Unit embeddings (n, d); texts of similar length are computed together."""
        tokens = [self._cut(ids) for ids in tokens]
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        parts: list[Tensor] = []
        for start in range(0, len(order), self.texts_at_once):
            some = {
                "input_ids": [tokens[index] for index in order[start : start + self.texts_at_once]]
            }
            if self.architecture.pads_to_end:
                padded = self.tokenizer.pad(
                    some, padding="max_length", max_length=self.max_text, return_tensors="pt"
                )
                inputs = {"input_ids": padded["input_ids"].to(self.device)}
            else:
                inputs = self.tokenizer.pad(some, return_tensors="pt").to(self.device)
            read = self.model.get_text_features(**inputs).pooler_output
            parts.append(functional.normalize(read.float(), dim=-1))
        if not parts:
            return torch.zeros(0, 1, device=self.device)
        together = torch.cat(parts)
        return together[torch.argsort(torch.tensor(order, device=self.device))]


@dataclass(frozen=True)
class Pixels:
    """The output of an image processor for n images: named tensors of n rows each."""

    features: dict[str, Tensor]

    def __getitem__(self, part: slice) -> Pixels:
        return Pixels({name: values[part] for name, values in self.features.items()})

    @classmethod
    def stack(cls, images: list[dict[str, Any]], pin: bool) -> Pixels:
        """Stack images of one shape into a batch, in pinned memory if it goes to a GPU."""
        stacked = {
            name: torch.from_numpy(np.stack([image[name] for image in images]))
            for name in images[0]
        }
        return cls({name: t.pin_memory() if pin else t for name, t in stacked.items()})
