"""LLaVA's first stage (Liu et al., arXiv 2304.08485, 2310.03744): a projection that is trained.

The modules are those of stock `LlavaForConditionalGeneration`. LLaVA-1.5's projection is an MLP of
two layers; LLaVA's one layer is written as two without an activation, the second the identity.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.image.decode import Preprocess
from models.objectives.frozen import only_part
from models.objectives.generate import load_language_model
from models.objectives.image_prefix import ImagePrefix, placeholder
from models.objectives.language_tokenizer import language_tokenizer

__all__ = ["Project"]

HALF = (0.5, 0.5, 0.5)
_PROCESSOR: Any = LlavaProcessor

TOWERS: dict[str, Any] = {
    "CLIPModel": "default",
    "CLIPVisionModel": "default",
    "SiglipModel": "full",
}
"""Models whose image encoder serves, and which of its tokens: `default` leaves out the first."""


class Project(ImagePrefix):
    """A `LlavaForConditionalGeneration` with the loss of LLaVA's first stage.

    Args:
        model: The stock model.
        tokenizer: Tokenizer of its language model.
    """

    image_first = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        vision = model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        preprocess = Preprocess(size=vision.image_size)
        self.is_siglip = vision.model_type == "siglip_vision_model"
        if self.is_siglip:
            preprocess = Preprocess(size=vision.image_size, mean=HALF, std=HALF)
        super().__init__(model, tokenizer, patches, preprocess)
        self.freeze(model.model.vision_tower, model.model.language_model, model.lm_head)
        if model.config.projector_hidden_act == "linear":
            self.freeze(model.model.multi_modal_projector.linear_2)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        language: str | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
        is_linear: bool = True,
    ) -> Self:
        """Build from an image encoder and a language model, or from a folder of `write`.

        Args:
            model: A CLIP or SigLIP, or a LLaVA; a folder or a name on the Hugging Face hub.
            language: A causal language model; required for an image encoder.
            tokenizer: Tokenizer of the language model; its own by default.
            image_size: Side in pixels, that of the image encoder.
            is_linear: Whether a new projection is one layer; an MLP of two layers otherwise.

        Raises:
            ValueError: The settings do not fit the models; the message names the field.
        """
        folder, config = only_part(os.fspath(model), "model")
        kind = (config.get("architectures") or [""])[0]
        made: Any
        if kind == "LlavaForConditionalGeneration":
            made = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True
            )
            reader = language_tokenizer(tokenizer or folder)
            has_one_layer = made.config.projector_hidden_act == "linear"
            if has_one_layer != is_linear:
                named = "llava" if has_one_layer else "llava-1.5"
                raise ValueError(f"train.recipe must be {named} for {model}, whose projection is")
        elif kind in TOWERS:
            made, reader = _joined(folder, kind, language, tokenizer, is_linear)
        else:
            raise ValueError(
                f"train.model: {model} is {kind!r} and none of {', '.join(TOWERS)}, whose image "
                "encoder LLaVA looks through"
            )
        side = made.config.vision_config.image_size
        if image_size not in (None, side):
            raise ValueError(
                f"train.image_size must be {side}, that of the frozen image encoder, got "
                f"{image_size}"
            )
        return cls(made, reader)

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.model.model.language_model

    @property
    def head(self) -> nn.Module:
        """The head of the language model."""
        head: nn.Module = self.model.lm_head
        return head

    def look(self, pixels: Tensor) -> Tensor:
        """Projected patches (n, N, D) of the second last layer."""
        return torch.stack(self.model.get_image_features(pixels).pooler_output)

    def write(self, folder: Path) -> None:
        """Write the model and its processor, as stock transformers loads them."""
        self.end_generation()
        self.model.save_pretrained(folder)
        vision, side = self.model.config.vision_config, self.preprocess.size
        square = {"height": side, "width": side}
        images: Any = CLIPImageProcessorPil(size=square, do_center_crop=False)
        if self.is_siglip:
            images = SiglipImageProcessorPil(size=square)
        _PROCESSOR(
            images,
            self.tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            num_additional_image_tokens=0 if self.is_siglip else 1,
        ).save_pretrained(folder)


def _joined(
    folder: str, kind: str, language: str | None, tokenizer: str | None, is_linear: bool
) -> tuple[Any, Any]:
    """A frozen image encoder, a new projection, and a language model."""
    tower = getattr(transformers, kind).from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    tower = getattr(tower, "vision_model", tower)
    words, reader = load_language_model(language, tokenizer)
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=words.config.to_dict(),
        image_token_index=placeholder(reader),
        vision_feature_layer=-2,
        vision_feature_select_strategy=TOWERS[kind],
        projector_hidden_act="linear" if is_linear else "gelu",
        tie_word_embeddings=bool(words.config.tie_word_embeddings),
    )
    made: Any = LlavaForConditionalGeneration(config)
    made.model.vision_tower.load_state_dict(tower.state_dict())
    made.model.language_model.load_state_dict(words.base_model.state_dict())
    made.lm_head.load_state_dict(words.get_output_embeddings().state_dict())
    if is_linear:
        layer = made.model.multi_modal_projector.linear_2
        with torch.no_grad():
            layer.weight.copy_(torch.eye(len(layer.weight)))
            layer.bias.zero_()
    return made, reader
