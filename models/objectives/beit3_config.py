"""The settings of BEiT-3 (Wang et al., arXiv 2208.10442)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import (
    ObjectiveConfig,
    Saved,
    check_between,
    check_least,
    check_share,
)
from models.objectives.purpose import Goal
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.beit3 import Beit3

__all__ = ["Beit3Config"]


@dataclass(frozen=True, kw_only=True)
class Beit3Config(ObjectiveConfig):
    """BEiT-3's training: masked data modelling of images, of texts and of pairs.

    Attention is shared, and images, texts and, in the top layers, both together have a
    feed-forward network each. The images and the texts of the pairs serve as images and texts
    alone, too.

    Attributes:
        goal: `pretrain` is masked data modelling. `retrieval` tunes the result by contrast,
            `captioning` by predicting masked words of captions from the image and the words before
            them.
        joint_layers: Layers at the top with a network of both modalities.
        patch_size: Side of a patch, in pixels.
        drop_path: The probability that the last layer is skipped; it falls evenly to 0 at the
            first.
        mask_images: Share of an image's patches that is hidden, in blocks.
        mask_texts: The probability that a token of a text without an image is hidden.
        mask_pairs: The probability that a token of a text with its image is hidden.
    """

    name = "beit3"
    paper = "BEiT-3 (arXiv 2208.10442)"
    departs = (
        "Hidden patches are guessed as normalised pixels (MAE), where BEiT-3 has the tokens of "
        "BEiT v2; learnt absolute positions; no images or texts beside the pairs."
    )
    public = "Its own folders."
    saves: ClassVar[Mapping[str, Saved]] = {".": Saved("BEiT3")}
    may_save: ClassVar[tuple[Saved, ...]] = (
        Saved("BEiT3ForRetrieval", "models.inference.trained:BEiT3Retrieval"),
        Saved("BEiT3ForCaptioning", "models.inference.trained:BEiT3Captioner"),
    )
    library = "capfilt"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"joint_layers": 1, "drop_path": 0.0}
    }
    by_choice: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "goal": {
            "retrieval": {"lr": 2e-4, "batch_size": 3072, "epochs": 15, "warmup_steps": 500},
            "captioning": {
                "lr": 4e-5,
                "batch_size": 256,
                "epochs": 10,
                "warmup_steps": 500,
                "mask_pairs": 0.7,
            },
        }
    }

    goal: Goal = "pretrain"
    batch_size: int = 2048
    epochs: int = 100
    lr: float = 1e-3
    warmup_steps: int = 10_000
    warmup_lr: float = 0.0
    weight_decay: float = 0.05
    beta2: float = 0.98
    eps: float = 1e-6
    max_text_tokens: int = 64
    augment: Augment = "crop"
    joint_layers: int = 3
    patch_size: int = 16
    drop_path: float = 0.1
    mask_images: float = 0.4
    mask_texts: float = 0.15
    mask_pairs: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "joint_layers")
        check_least(self, 1, "patch_size")
        check_share(self, "drop_path", "mask_images")
        check_between(self, 0, 1, "mask_texts", "mask_pairs")

    def written(self) -> Mapping[str, Saved]:
        """One folder, of the goal's architecture."""
        goals = {"retrieval": self.may_save[0], "captioning": self.may_save[1]}
        return {".": goals[self.goal]} if self.goal in goals else self.saves

    def build(self) -> Beit3:
        """Make the model."""
        from models.objectives.beit3 import Beit3

        model = Beit3.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            patch=self.patch_size,
            positions=self.max_text_tokens,
            joint_layers=self.joint_layers,
        )
        model.multiway.drop_path = self.drop_path
        model.mask_images, model.mask_texts = self.mask_images, self.mask_texts
        model.mask_pairs = self.mask_pairs
        model.start(self.goal)
        return model
