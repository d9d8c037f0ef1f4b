"""The settings of a small language model of captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.language import Language

__all__ = ["LanguageConfig"]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(ObjectiveConfig):
    """Language modelling of the texts alone; images are not read.

    It makes the language model that `generate`, `project`, `instruct` and `flamingo` build on where
    none is at hand, as in a miniature. The optimiser's settings are Llama's.
    """

    name = "language"
    paper = "LLaMA (arXiv 2302.13971)"
    departs = "A miniature of captions, not a released language model."
    public = "A Llama."
    saves: ClassVar[Mapping[str, Saved]] = {".": Saved("LlamaForCausalLM")}
    task = "text-generation"
    is_divisible = True

    batch_size: int = 2048
    lr: float = 3e-4
    min_lr: float = 3e-5
    warmup_steps: int = 2000
    warmup_lr: float = 0.0
    weight_decay: float = 0.1
    beta2: float = 0.95
    max_text_tokens: int = 64
    augment: Augment = "none"

    def build(self) -> Language:
        """Make the language model."""
        from models.objectives.language import Language

        return Language.from_pretrained(
            folder_of(self.model), tokenizer=self.tokenizer and folder_of(self.tokenizer)
        )
