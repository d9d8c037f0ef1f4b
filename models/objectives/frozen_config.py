"""The settings that objectives on a frozen language model share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.objectives.config import ObjectiveConfig, named
from models.objectives.start import NO_START

__all__ = ["FrozenLanguageConfig"]


@dataclass(frozen=True, kw_only=True)
class FrozenLanguageConfig(ObjectiveConfig):
    """Settings of an objective that builds on a frozen language model.

    `language: NAME` and `start: {language: NAME}` are the same setting: trainings that differ in
    the spelling have one fingerprint.

    Attributes:
        language: The language model, a folder or on the hub; its tokenizer is used. Needed unless
            `model` has one already. `start: {language: ...}` is the same.
    """

    starts = ("language",)

    language: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language and self.start.language:
            raise ValueError(
                "train.language and train.start.language are the same setting; give one of them"
            )

    @property
    def language_model(self) -> str | None:
        """The language model, under whichever name it is given."""
        return self.language or self.start.language

    def models(self) -> dict[str, str]:
        """The model that the training starts from, and the language model."""
        return named(model=self.model, language=self.language_model)

    def measurement(self) -> dict[str, Any]:
        """The settings, with the language model as `language`."""
        own = super().measurement() | {"language": self.language_model}
        if self.start != NO_START:
            del own["start"]
        return own
