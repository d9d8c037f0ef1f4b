"""The settings of the first stage of LLaVA (arXiv 2304.08485, 2310.03744) and of MiniGPT-4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from models.image.augmentation import Augment
from models.objectives.config import Saved
from models.objectives.frozen_config import FrozenLanguageConfig
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.image_prefix import ImagePrefix

__all__ = ["ProjectConfig", "Recipe"]

Recipe = Literal["llava", "llava-1.5", "minigpt4"]


@dataclass(frozen=True, kw_only=True)
class ProjectConfig(FrozenLanguageConfig):
    """LLaVA's first stage: a projection of image features into a frozen language model.

    Image encoder and language model are frozen; the projection alone is trained, by language
    modelling of captions behind the image, without an instruction, as in the released code.
    Images are squashed to a square, where LLaVA-1.5 pads them. The defaults are those of LLaVA,
    or of the recipe.

    Attributes:
        recipe: `llava` (arXiv 2304.08485): one linear layer on a CLIP's features of the second
            last layer; `llava-1.5` (arXiv 2310.03744): an MLP of two; both are a
            `LlavaForConditionalGeneration`. `minigpt4` (arXiv 2304.10592): one linear layer behind
            a frozen Q-Former, a `Blip2ForConditionalGeneration`.
        model: Model that the training starts from: a CLIP or SigLIP (`llava`, `llava-1.5`), a
            BLIP-2 (`minigpt4`), or a model that `project` has trained.
    """

    name = "project"
    paper = "LLaVA (arXiv 2304.08485)"
    departs = (
        "Images are squashed to a square, where LLaVA-1.5 pads; captions end with the "
        "tokenizer's end where it has no line break; MiniGPT-4's mix of data sets is that of "
        "`data`."
    )
    public = (
        "`openai/clip-vit-large-patch14` (`-336` for LLaVA-1.5) with `language: "
        "lmsys/vicuna-7b-v1.5`; `Salesforce/blip2-opt-2.7b` for MiniGPT-4."
    )
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("LlavaForConditionalGeneration", "models.inference.vlm:GenericCaptioner")
    }
    may_save = (Saved("Blip2ForConditionalGeneration", "models.inference.vlm:GenericCaptioner"),)
    by_choice: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {
            "llava-1.5": {"lr": 1e-3, "batch_size": 256, "image_size": 336},
            "minigpt4": {
                "lr": 1e-4,
                "min_lr": 8e-5,
                "warmup_steps": 5000,
                "warmup_lr": 1e-6,
                "weight_decay": 0.05,
                "batch_size": 256,
                "max_text_tokens": 32,
                "augment": "crop",
            },
        }
    }
    task = "image-to-text"
    is_divisible = True

    recipe: Recipe = "llava"
    model: str = "openai/clip-vit-large-patch14"
    batch_size: int = 128
    epochs: int = 1
    lr: float = 2e-3
    warmup_steps: int = 140
    warmup_lr: float = 0.0
    weight_decay: float = 0.0
    max_text_tokens: int = 128
    augment: Augment = "none"

    def written(self) -> Mapping[str, Saved]:
        """One folder, of the recipe's class."""
        return {".": self.may_save[0]} if self.recipe == "minigpt4" else self.saves

    def build(self) -> ImagePrefix:
        """Make the model."""
        from models.objectives.generate import Generate
        from models.objectives.project import Project

        language = self.language_model and folder_of(self.language_model)
        tokenizer = self.tokenizer and folder_of(self.tokenizer)
        if self.recipe == "minigpt4":
            return Generate.from_pretrained(
                folder_of(self.model),
                language=language,
                tokenizer=tokenizer,
                image_size=self.image_size,
                trains_qformer=False,
            )
        return Project.from_pretrained(
            folder_of(self.model),
            language=language,
            tokenizer=tokenizer,
            image_size=self.image_size,
            is_linear=self.recipe == "llava",
        )
