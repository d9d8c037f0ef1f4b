"""The settings of VLMo (Bao et al., arXiv 2111.02358)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, Schedule, check_least, check_share
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.vlmo import Vlmo

__all__ = ["VlmoConfig"]


@dataclass(frozen=True, kw_only=True)
class VlmoConfig(ObjectiveConfig):
    """VLMo's training: contrast, matching and masked language modelling of a multiway transformer.

    Attention is shared, and images, texts and, in the top layers, both together have a
    feed-forward network each. Contrast is computed twice, by the networks of one modality and, in
    the top layers, by those of both. The wrong partners of matching are of all ranks.

    Attributes:
        stage: `pairs` trains everything by all losses (the paper's third stage). `texts` trains
            the networks and embeddings of texts alone by masked language modelling, with the
            attention frozen (the second stage).
        joint_layers: Layers at the top with a network of both modalities.
        patch_size: Side of a patch, in pixels.
        drop_path: The probability that the last layer is skipped; it falls evenly to 0 at the
            first.
    """

    name = "vlmo"
    paper = "VLMo (arXiv 2111.02358)"
    departs = (
        "Learnt absolute positions, where the larger sizes have relative ones; random "
        "weights, where VLMo starts from BEiT; `stage: texts` reads the captions, where VLMo "
        "has Wikipedia and books."
    )
    public = "Its own folders."
    saves: ClassVar[Mapping[str, Saved]] = {".": Saved("VLMo", "models.inference.trained:VLMo")}
    library = "capfilt"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"joint_layers": 1, "drop_path": 0.0},
        "large": {"lr": 5e-5, "joint_layers": 3},
    }

    stage: Literal["pairs", "texts"] = "pairs"
    batch_size: int = 1024
    epochs: int = 50
    lr: float = 2e-4
    warmup_steps: int = 20_000
    warmup_lr: float = 0.0
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    max_text_tokens: int = 40
    augment: Augment = "paper"
    joint_layers: int = 2
    patch_size: int = 16
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "joint_layers", "patch_size")
        check_share(self, "drop_path")

    def build(self) -> Vlmo:
        """Make the model."""
        from models.objectives.vlmo import Vlmo

        model = Vlmo.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            patch=self.patch_size,
            positions=self.max_text_tokens,
            joint_layers=self.joint_layers,
        )
        model.multiway.drop_path = self.drop_path
        if self.stage == "texts":
            model.train_texts_alone()
        return model
