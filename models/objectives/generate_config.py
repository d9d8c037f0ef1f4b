"""The settings of BLIP-2's second stage (Li et al., arXiv 2301.12597)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import Saved
from models.objectives.frozen_config import FrozenLanguageConfig
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.generate import Generate

__all__ = ["GenerateConfig"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(FrozenLanguageConfig):
    """BLIP-2's second stage: a Q-Former is trained as the input of a frozen language model.

    Image encoder and language model are frozen; the Q-Former, without its text branch, and a
    projection of its queries are trained by language modelling of the captions. The language
    model is a decoder (the paper also has encoder-decoders).

    Attributes:
        model: Model that the training starts from: a model that `qformer` has trained, a released
            `Blip2ForImageTextRetrieval`, or a model that `generate` has trained.
        prompt: Text between the image and each caption; the loss leaves it out. BLIP-2 has
            `a photo of` in fine-tuning on COCO and none in pre-training.
    """

    name = "generate"
    paper = "BLIP-2 (arXiv 2301.12597)"
    departs = "Decoders alone: no FlanT5, whose texts are split into prefix and suffix."
    public = (
        "`Salesforce/blip2-itm-vit-g` with `language: facebook/opt-2.7b`; "
        "`Salesforce/blip2-opt-2.7b`."
    )
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("Blip2ForConditionalGeneration", "models.inference.vlm:GenericCaptioner")
    }
    task = "image-to-text"
    is_divisible = True

    model: str = "Salesforce/blip2-itm-vit-g"
    prompt: str = ""
    batch_size: int = 1920
    epochs: int = 2
    lr: float = 1e-4
    min_lr: float = 5e-5
    warmup_steps: int = 2000
    beta2: float = 0.98
    max_text_tokens: int = 32
    augment: Augment = "crop"

    def build(self) -> Generate:
        """Make the model."""
        from models.objectives.generate import Generate

        model = Generate.from_pretrained(
            folder_of(self.model),
            language=self.language_model and folder_of(self.language_model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
        )
        model.prompt = self.prompt
        return model
