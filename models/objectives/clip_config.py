"""The settings of CLIP's training (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, check_share
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.clip import Contrastive

__all__ = ["ClipConfig"]


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ObjectiveConfig):
    """CLIP's training: the symmetric contrastive loss (InfoNCE) of the pairs of a batch.

    The defaults are those of CLIP's ViT-B.

    Attributes:
        mask_patches: The share of an image's patches that is hidden from the image encoder in
            training (FLIP, arXiv 2212.00794: 0.5), below 1.
        gradient_checkpointing: Compute the layers again in the backward pass, to save memory.
    """

    name = "clip"
    paper = "CLIP (arXiv 2103.00020)"
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("CLIPModel", "models.inference.dual_encoder:DualEncoder")
    }
    task = "zero-shot-image-classification"
    former: ClassVar[Mapping[str, Any]] = {
        "albef": False,
        "queue_size": 0,
        "momentum": 0.995,
        "alpha": 0.4,
        "alpha_epochs": 2,
        "negatives": "local",
        "label_smoothing": 0.1,
        "prompt": "",
        "drop_path": None,
    }

    batch_size: int = 32768
    epochs: int = 32
    lr: float = 5e-4
    warmup_steps: int = 2000
    warmup_lr: float = 0.0
    weight_decay: float = 0.2
    beta2: float = 0.98
    eps: float = 1e-6
    max_text_tokens: int = 77
    augment: Augment = "crop"
    crop_scale: float = 0.9
    mask_patches: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "mask_patches")

    def build(self) -> Contrastive:
        """Make the CLIP."""
        from models.objectives.clip import Contrastive

        model = Contrastive.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
        )
        model.mask_patches = self.mask_patches
        model.recompute = self.gradient_checkpointing
        return model
