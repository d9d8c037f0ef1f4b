"""The settings of ViLT (Kim et al., arXiv 2102.03334)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, Schedule, check_least, named
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.vilt import Vilt

__all__ = ["ViltConfig"]


@dataclass(frozen=True, kw_only=True)
class ViltConfig(ObjectiveConfig):
    """ViLT's pre-training: one transformer reads words and patches (MLM + ITM + alignment).

    Masked language modelling hides whole words of true pairs. In matching half of the pairs get
    another image, drawn evenly from the batch, where ViLT draws from the whole data set; the
    optimal transport between words and patches is short for true pairs and long for others.
    Images are squares, where ViLT keeps their shape.

    Attributes:
        vit: The ViT that the layers start from, such as `google/vit-base-patch32-384` for size
            `base`; random weights where it is not set.
        patch_size: Side of a patch, in pixels.
        max_patches: Maximum number of patches of an image; of more, this many are drawn at random.
        alignment: Weight of the alignment of words and patches, 0.1 in ViLT; 0 leaves it out.
    """

    name = "vilt"
    paper = "ViLT (arXiv 2102.03334)"
    departs = "Wrong images come from the batch, not from the data set; images are squares."
    public = "`dandelin/vilt-b32-mlm`; `vit: google/vit-base-patch32-384`."
    saves: ClassVar[Mapping[str, Saved]] = {
        "mlm": Saved("ViltForMaskedLM"),
        "retrieval": Saved("ViltForImageAndTextRetrieval", "models.inference.trained:Vilt"),
    }
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"patch_size": 16}}

    vit: str | None = None
    image_size: int = 384
    batch_size: int = 4096
    epochs: int = 100
    lr: float = 1e-4
    warmup_steps: int = 10_000
    warmup_lr: float = 0.0
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_text_tokens: int = 40
    augment: Augment = "none"
    patch_size: int = 32
    max_patches: int = 200
    alignment: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "patch_size", "max_patches")
        check_least(self, 0, "alignment")

    def models(self) -> dict[str, str]:
        """The model itself, and the ViT that its layers start from."""
        return named(model=self.model, vit=self.vit)

    def build(self) -> Vilt:
        """Make the model."""
        from models.objectives.vilt import Vilt

        model = Vilt.from_pretrained(
            folder_of(self.model),
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            patch=self.patch_size,
            positions=self.max_text_tokens,
            vit=self.vit and folder_of(self.vit),
        )
        model.max_patches = self.max_patches
        model.alignment = self.alignment
        return model
