"""The settings of CLIP's training (Radford et al., arXiv 2103.00020) and of SigLIP's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from models.image.augmentation import Augment
from models.objectives.config import ObjectiveConfig, Saved, check_share
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.clip import Contrastive

__all__ = ["ClipConfig"]


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ObjectiveConfig):
    """CLIP's training: the symmetric contrastive loss (InfoNCE) of the pairs of a batch.

    The defaults are those of CLIP's ViT-B. With `loss: sigmoid` it is SigLIP's training
    (arXiv 2303.15343), with SigLIP's defaults, on a `SiglipModel`; the weight decay of its code,
    1e-4, is not multiplied by the learning rate and is 0.1 in AdamW.

    Attributes:
        loss: `softmax` is CLIP's loss: each image picks its text among those of the batch, and
            each text its image. `sigmoid` is SigLIP's: each pair is right or wrong by itself, its
            logit the cosine times a scale plus a bias, both learnt from 10 and -10; it is less
            sensitive to the size of the batch. Another text of the same image is left out of it.
        mask_patches: The share of an image's patches that is hidden from the image encoder in
            training (FLIP, arXiv 2212.00794: 0.5), below 1.
        gradient_checkpointing: Compute the layers again in the backward pass, to save memory.
    """

    name = "clip"
    paper = "CLIP (arXiv 2103.00020)"
    departs = "The batch is one machine's or what `workers` share."
    public = (
        "`openai/clip-vit-base-patch16`; with `loss: sigmoid` `google/siglip-base-patch16-224`."
    )
    saves: ClassVar[Mapping[str, Saved]] = {
        ".": Saved("CLIPModel", "models.inference.dual_encoder:DualEncoder")
    }
    task = "zero-shot-image-classification"
    may_save = (Saved("SiglipModel", "models.inference.dual_encoder:DualEncoder"),)
    by_choice: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "loss": {
            "sigmoid": {
                "lr": 1e-3,
                "weight_decay": 0.1,
                "beta2": 0.95,
                "max_text_tokens": 64,
            }
        }
    }
    starts = ("vision", "text")
    is_shaped = True
    freezes = ("vision", "text")
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

    loss: Literal["softmax", "sigmoid"] = "softmax"
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
        if self.loss == "sigmoid" and self.start.models():
            raise ValueError("train.start: only the loss softmax can start from encoders")

    def written(self) -> Mapping[str, Saved]:
        """One folder, a `CLIPModel` or a `SiglipModel`."""
        return self.saves if self.loss == "softmax" else {".": self.may_save[0]}

    def measurement(self) -> dict[str, Any]:
        """The settings that change the model; the loss only where it is not CLIP's."""
        settings = super().measurement()
        if self.loss == "softmax":
            del settings["loss"]
        return settings

    def build(self) -> Contrastive:
        """Make the CLIP or the SigLIP."""
        from models.objectives.clip import Contrastive
        from models.objectives.features import Features
        from models.objectives.siglip import SigmoidContrast

        tokenizer = self.tokenizer and folder_of(self.tokenizer)
        model: Contrastive
        if self.loss == "softmax":
            model = Contrastive.from_pretrained(
                folder_of(self.model),
                tokenizer=tokenizer,
                image_size=self.image_size,
                start=self.start,
                shape=self.shape,
            )
        else:
            model = SigmoidContrast.from_pretrained(
                folder_of(self.model),
                tokenizer=tokenizer,
                image_size=self.image_size,
                shape=self.shape,
                max_text_tokens=self.max_text_tokens,
            )
        model.mask_patches = self.mask_patches
        if self.has_fixed_features and not self.mask_patches:
            model.features = Features()
        model.recompute = self.gradient_checkpointing
        return model
