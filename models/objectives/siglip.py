"""SigLIP (Zhai et al., arXiv 2303.15343): a sigmoid loss for each pair of a batch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.image.decode import Preprocess
from models.objectives.base import Step
from models.objectives.batch import Batch
from models.objectives.clip import Contrastive
from models.objectives.distributed import gather, gather_with_gradient, rank
from models.objectives.sizes import CLIP_SIZES, shaped, siglip_config
from models.objectives.start import Shape, Start

__all__ = ["SigmoidContrast", "sigmoid_contrast"]

HALF = (0.5, 0.5, 0.5)
"""SigLIP's mean and standard deviation of each channel: pixels go from -1 to 1."""

SCALE, BIAS = 10.0, -10.0
"""The first scale and bias: nearly every pair of a batch is wrong, and the bias says so."""


def sigmoid_contrast(
    images: Tensor, texts: Tensor, image_ids: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """SigLIP's loss of n images against the texts of all ranks.

    Args:
        images: Unit embeddings (n, d).
        texts: Unit embeddings (n, d), row i of image i.
        image_ids: int64 (n,); another text of the same image is neither right nor wrong.
        scale: Factor on the cosines.
        bias: Added to the scaled cosines.

    Returns:
        The sum of -log sigmoid(z * logit) over all pairs, z = 1 for the own text and -1 for
        others, divided by the number of images.
    """
    logits = scale * images @ gather_with_gradient(texts).T + bias
    own = torch.arange(len(images), device=images.device) + rank() * len(images)
    is_own = F.one_hot(own, logits.shape[1]).bool()
    counts = is_own | (image_ids[:, None] != gather(image_ids))
    each = F.logsigmoid(torch.where(is_own, logits, -logits))
    return -(each * counts).sum() / len(images)


class SigmoidContrast(Contrastive):
    """A `SiglipModel` with its loss.

    Args:
        model: The stock model.
        tokenizer: Tokenizer of the texts.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        side = model.config.vision_config.image_size
        self.preprocess = Preprocess(size=side, mean=HALF, std=HALF)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        start: Start | None = None,
        shape: Shape | None = None,
        max_text_tokens: int = 64,
    ) -> Self:
        """Build from a size, a folder of `write`, or a stock SigLIP model.

        Args:
            model: A name in `CLIP_SIZES` (random weights from torch's generator), a folder, or a
                name on the Hugging Face hub.
            tokenizer: A folder or name; required for a size.
            image_size: Side in pixels; that of the model where it is not a size.
            start: Must be empty.
            shape: Numbers that a size has in the place of its own.
            max_text_tokens: The tokens that every text is cut or padded to; those of the model
                where it is not a size.

        Raises:
            ValueError: A size without a tokenizer, or an image size or text length that the model
                does not have, or a start.
        """
        if start is not None and start.models():
            raise ValueError("train.start: only the loss softmax can start from encoders")
        name = os.fspath(model)
        if name not in CLIP_SIZES:
            loaded: Any = SiglipModel.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True
            )
            side = loaded.config.vision_config.image_size
            if image_size not in (None, side):
                raise ValueError(f"train.image_size must be {side} for {name}, got {image_size}")
            longest = loaded.config.text_config.max_position_embeddings
            if max_text_tokens != longest:
                raise ValueError(
                    f"train.max_text_tokens must be {longest} for {name}, which reads a text at "
                    f"its last place, got {max_text_tokens}"
                )
            return cls(
                loaded, AutoTokenizer.from_pretrained(tokenizer or name, trust_remote_code=False)
            )
        if tokenizer is None:
            raise ValueError(f"model {name!r} is an architecture and needs a tokenizer")
        reader = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        config: SiglipConfig = siglip_config(
            shaped(CLIP_SIZES, name, shape),
            reader,
            image_size=image_size,
            max_text_tokens=max_text_tokens,
        )
        made: Any = SiglipModel(config)
        with torch.no_grad():
            made.logit_scale.fill_(math.log(SCALE))
            made.logit_bias.fill_(BIAS)
        return cls(made, reader)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L) with one L for all: SigLIP reads a text at its last place, padding too."""
        longest: int = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        tokens: Tensor = encoded["input_ids"]
        return tokens

    def normalize(self, squares: Tensor) -> Tensor:
        """float32 (n, 3, S, S) from -1 to 1, of uint8 (n, S, S, 3)."""
        return self.preprocess.normalize(squares)

    def embed_images(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Unit embeddings (n, d) of (n, 3, S, S), or of the patches `kept` (n, k) of them."""
        vision = self.model.vision_model
        x = vision.embeddings(pixels)
        if kept is not None:
            x = x.take_along_dim(kept[:, :, None], 1)
        x = vision.encoder(inputs_embeds=x).last_hidden_state
        seen = vision.head(vision.post_layernorm(x))
        return F.normalize(seen.float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, d) of texts, their padding read as text."""
        read = self.model.get_text_features(input_ids=tokens).pooler_output
        return F.normalize(read.float(), dim=-1)

    def logged(self) -> dict[str, float]:
        """The scale and the bias of the logits."""
        return {
            "scale": math.exp(self.model.logit_scale.item()),
            "bias": self.model.logit_bias.item(),
        }

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The loss, `sigmoid`.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        images, texts = self.encode(batch, step), self.embed_texts(batch.texts)
        with torch.autocast(images.device.type, enabled=False):
            scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
            return {"sigmoid": sigmoid_contrast(images, texts, batch.image_ids, scale, bias)}

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: how a text must be padded."""
        longest = self.model.config.text_config.max_position_embeddings
        return (
            f"Every text is cut or padded to {longest} tokens, and the padding is read as text: "
            f'give the processor `padding="max_length", max_length={longest}, truncation=True`. '
            "The sigmoid of `logits_per_image` is the probability that a text is the image's."
        )

    def write(self, folder: Path) -> None:
        """Write the model, its tokenizer and image processor, as stock `SiglipModel` loads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        side = self.model.config.vision_config.image_size
        SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
