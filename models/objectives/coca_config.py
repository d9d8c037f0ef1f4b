"""The settings of CoCa (Yu et al., arXiv 2205.01917)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, Schedule, check_least
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.coca import Coca

__all__ = ["CocaConfig"]


@dataclass(frozen=True, kw_only=True)
class CocaConfig(ObjectiveConfig):
    """CoCa's training: a contrastive loss and a captioning loss of one forward pass.

    A decoder whose lower half reads the text alone gives the embedding of the text at a token
    behind it; the upper half looks at the image and predicts the next word. AdamW takes the place
    of the paper's Adafactor. The folder has open_clip's names (stock open_clip loads it as
    `local-dir:FOLDER`); texts are masked as in the paper, where open_clip's default shifts the
    mask by one (set `model.text.correct_cls_mask = True` there).

    Attributes:
        contrastive_weight: Weight of the contrastive loss; 0 for fine-tuning on captions.
        caption_weight: Weight of the captioning loss.
        queries: Number of image tokens that the captioning pooler makes for the decoder. The
            contrastive pooler makes one embedding out of them.
        patch_size: Side of a patch, in pixels.
    """

    name = "coca"
    paper = "CoCa (arXiv 2205.01917)"
    departs = (
        "AdamW takes the place of Adafactor; a [CLS] and a norm before the image layers, as "
        "in open_clip; image and text have one width; open_clip's cascade of poolers."
    )
    public = "Its own folders."
    saves: ClassVar[Mapping[str, Saved]] = {".": Saved("CoCa", "models.inference.trained:Coca")}
    library = "open_clip"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"queries": 16, "patch_size": 16}}

    image_size: int = 288
    batch_size: int = 65536
    epochs: int = 7
    lr: float = 8e-4
    warmup_steps: int = 10_000
    warmup_lr: float = 0.0
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    max_text_tokens: int = 76
    augment: Augment = "crop"
    crop_scale: float = 0.9
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    queries: int = 256
    patch_size: int = 18

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "contrastive_weight", "caption_weight")
        check_least(self, 1, "queries", "patch_size")
        if not self.contrastive_weight and not self.caption_weight:
            raise ValueError("train.caption_weight and train.contrastive_weight must not both be 0")

    def build(self) -> Coca:
        """Make the model."""
        from models.objectives.coca import Coca

        model = Coca.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            patch=self.patch_size,
            queries=self.queries,
            positions=self.max_text_tokens,
        )
        model.contrastive_weight = self.contrastive_weight
        model.caption_weight = self.caption_weight
        return model
