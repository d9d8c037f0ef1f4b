"""The settings of the second stage of LLaVA (arXiv 2304.08485, 2310.03744) and of MiniGPT-4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, named
from models.objectives.project_config import Recipe
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.image_prefix import ImagePrefix

__all__ = ["InstructConfig"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True, kw_only=True)
class InstructConfig(ObjectiveConfig):
    """LLaVA's second stage: projection and language model learn to answer.

    The data are conversations in LLaVA's JSON, of any number of turns. Any other pair becomes a
    conversation of one turn: one of LLaVA's instructions for a brief description, chosen by a hash
    of the caption, and the caption as the answer. The loss is that of the answers and their ends.
    The image encoder stays frozen. The defaults are those of LLaVA, or of the recipe.

    Attributes:
        recipe: `llava` and `llava-1.5` train the projection and the language model. `minigpt4`
            trains the projection alone, and has its own form of a turn.
        model: A model that `project` has trained with the same recipe, or that `instruct` has; a
            folder.
        system: Text before the first turn (`llava`, `llava-1.5`).
    """

    name = "instruct"
    paper = "LLaVA (arXiv 2304.08485)"
    departs = "Images are squashed to a square; batches are not grouped by length."
    public = "`llava-hf/llava-1.5-7b-hf`; `Salesforce/blip2-opt-2.7b` for MiniGPT-4."
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("LlavaForConditionalGeneration", "models.inference.vlm:GenericCaptioner")
    }
    may_save = (Saved("Blip2ForConditionalGeneration", "models.inference.vlm:GenericCaptioner"),)
    by_choice: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {
            "llava-1.5": {"batch_size": 128, "epochs": 1, "image_size": 336},
            "minigpt4": {
                "lr": 3e-5,
                "min_lr": 1e-5,
                "warmup_steps": 200,
                "warmup_lr": 1e-6,
                "weight_decay": 0.05,
                "batch_size": 12,
                "epochs": 5,
                "max_text_tokens": 160,
                "augment": "crop",
            },
        }
    }
    task = "image-text-to-text"
    is_divisible = True
    reads_conversations = True

    recipe: Recipe = "llava"
    model: str = "llava-hf/llava-1.5-7b-hf"
    system: str = SYSTEM
    batch_size: int = 32
    epochs: int = 3
    lr: float = 2e-5
    warmup_steps: int = 150
    warmup_lr: float = 0.0
    weight_decay: float = 0.0
    max_text_tokens: int = 512
    augment: Augment = "none"

    def models(self) -> dict[str, str]:
        """The model that the training starts from."""
        return named(model=self.model)

    def written(self) -> Mapping[str, Saved]:
        """One folder, of the recipe's class."""
        return {".": self.may_save[0]} if self.recipe == "minigpt4" else self.saves

    def build(self) -> ImagePrefix:
        """Make the model."""
        from models.objectives.instruct import InstructBlip2, InstructLlava

        tokenizer = self.tokenizer and folder_of(self.tokenizer)
        if self.recipe == "minigpt4":
            return InstructBlip2.from_pretrained(
                folder_of(self.model),
                tokenizer=tokenizer,
                image_size=self.image_size,
                trains_qformer=False,
            )
        model = InstructLlava.from_pretrained(
            folder_of(self.model),
            tokenizer=tokenizer,
            image_size=self.image_size,
            is_linear=self.recipe == "llava",
        )
        model.system = self.system
        return model
