"""The settings of BLIP-2's first stage (Li et al., arXiv 2301.12597)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, check_least, named
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.qformer import QFormer

__all__ = ["QFormerConfig"]


@dataclass(frozen=True, kw_only=True)
class QFormerConfig(ObjectiveConfig):
    """BLIP-2's first stage: a Q-Former learns to look through a frozen image encoder.

    Its losses are contrast (the query most like the text counts), matching with hard wrong
    partners, and language modelling, in equal parts. The image encoder is a BLIP's or a BLIP-2's,
    without its last layer; a layer norm behind it is trained. The warm-up is that of the paper.

    Attributes:
        vision: The model whose image encoder is frozen: a BLIP or BLIP-2, a folder or on the hub.
            Needed where `model` is a size.
        bert: The BERT that the Q-Former starts from, `bert-base-uncased` in the paper; random
            weights where it is not set.
        queries: Number of image tokens that the Q-Former makes.
        skip_layers: Layers at the end of the image encoder that are left out. The encoder of a
            BLIP-2 lacks them already.
        label_smoothing: Label smoothing of contrast and language modelling.
    """

    name = "qformer"
    paper = "BLIP-2 (arXiv 2301.12597)"
    departs = (
        "The image encoder is a BLIP's; random weights unless `bert` is set; the paper's EVA "
        "ViT-g comes with a released BLIP-2."
    )
    public = "`Salesforce/blip2-itm-vit-g`; `bert: bert-base-uncased` with a BLIP as `vision`."
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("Blip2ForImageTextRetrieval", "models.inference.trained:QFormer")
    }
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"queries": 8}}

    vision: str | None = None
    bert: str | None = None
    batch_size: int = 2320
    epochs: int = 5
    lr: float = 1e-4
    warmup_steps: int = 2000
    beta2: float = 0.98
    max_text_tokens: int = 32
    augment: Augment = "crop"
    queries: int = 32
    skip_layers: int = 1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "queries")
        check_least(self, 0, "skip_layers", "label_smoothing")

    def models(self) -> dict[str, str]:
        """The model itself, and those that the frozen encoder and the text weights come from."""
        return named(model=self.model, vision=self.vision, bert=self.bert)

    def build(self) -> QFormer:
        """Make the model."""
        from models.objectives.qformer import QFormer

        model = QFormer.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            vision=self.vision and folder_of(self.vision),
            bert=self.bert and folder_of(self.bert),
            queries=self.queries,
            skip_layers=self.skip_layers,
        )
        model.label_smoothing = self.label_smoothing
        model.max_text = self.max_text_tokens
        return model
