"""The settings of SimVLM (Wang et al., arXiv 2108.10904)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, Schedule
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.simvlm import SimVLM

__all__ = ["SimVlmConfig"]


@dataclass(frozen=True, kw_only=True)
class SimVlmConfig(ObjectiveConfig):
    """SimVLM's training: one loss, prefix language modelling (PrefixLM).

    The encoder reads the image and the first words of the text; their number is drawn evenly for
    each text. The decoder predicts the rest. Images pass three stages of a ResNet first.

    Attributes:
        conv_blocks: Blocks in each stage of the ResNet; those of a ResNet-101 by default.
        prompt: Text that captions continue when the model writes them; the paper has `A picture
            of`.
    """

    name = "simvlm"
    paper = "SimVLM (arXiv 2108.10904)"
    departs = (
        "No text documents beside the pairs; learnt absolute positions; group norms in the "
        "ResNet, so that an image is read alike in every batch; a prompt is read by the "
        "decoder."
    )
    public = "Its own folders."
    saves: ClassVar[Mapping[str, Saved]] = {".": Saved("SimVLM", "models.inference.trained:SimVLM")}
    library = "capfilt"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"conv_blocks": (1, 1, 1)}}
    task = "image-to-text"

    batch_size: int = 4096
    epochs: int = 2
    lr: float = 5e-4
    warmup_steps: int = 20_000
    warmup_lr: float = 0.0
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    max_text_tokens: int = 64
    augment: Augment = "crop"
    conv_blocks: tuple[int, int, int] = (3, 4, 23)
    prompt: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.conv_blocks) != 3 or min(self.conv_blocks) < 1:
            raise ValueError(
                f"train.conv_blocks must be three numbers of at least 1, got {self.conv_blocks}"
            )

    def build(self) -> SimVLM:
        """Make the model."""
        from models.objectives.simvlm import SimVLM

        return SimVLM.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            conv_blocks=tuple(self.conv_blocks),
            positions=self.max_text_tokens,
            prompt=self.prompt,
        )
