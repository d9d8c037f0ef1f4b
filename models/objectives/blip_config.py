"""The settings of BLIP's objectives (Li et al., arXiv 2201.12086).

The defaults are those of BLIP's released configs and of Table 14, for a ViT-B and, with
`model: large`, for a ViT-L.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from models.objectives.config import (
    NearMissSettings,
    ObjectiveConfig,
    Saved,
    Schedule,
    check_between,
    check_least,
    check_share,
)
from models.objectives.purpose import Part
from models.objectives.queue import check_queue
from models.text.near_misses import KINDS, Kind
from models.weights import folder_of

if TYPE_CHECKING:
    from models.objectives.blip import MED

__all__ = [
    "CAPTIONER",
    "MATCHER",
    "BlipConfig",
    "CaptionerConfig",
    "FilterConfig",
    "JointConfig",
    "MatcherConfig",
    "PretrainConfig",
]

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound="MED")

CAPTIONER = Saved("BlipForConditionalGeneration", "models.inference.captioner:Captioner")
MATCHER = Saved("BlipForImageTextRetrieval", "models.inference.matcher:Matcher")


@dataclass(frozen=True, kw_only=True)
class BlipConfig(ObjectiveConfig):
    """Settings of every BLIP objective; the defaults are those of fine-tuning.

    Attributes:
        prompt: Text before every caption. The language modelling loss leaves it out.
        mask_patches: The share of an image's patches that is hidden from the image encoder in
            training (FLIP, arXiv 2212.00794: 0.5), below 1.
        drop_path: The chance that the last layer of the image encoder is skipped for an image,
            falling evenly to 0 at the first layer (stochastic depth, arXiv 1603.09382). Unset is
            that of BLIP's code: 0.1 for a ViT-L and 0 for others.
        gradient_checkpointing: Compute layers again in the backward pass, to save memory.
    """

    paper = "BLIP (arXiv 2201.12086)"
    starts = ("vision", "text")
    is_shaped = True
    freezes = ("vision",)

    parts: ClassVar[tuple[Part, ...]]
    """The models that are trained."""

    floor: ClassVar[float] = 0.0
    """Added to the probability of each negative of matching."""

    image_size: int = 384
    epochs: int = 6
    lr: float = 1e-5
    prompt: str = ""
    mask_patches: float = 0.0
    drop_path: float | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "mask_patches", "drop_path")

    def build(self) -> MED:
        """Make the captioner, the matcher or both."""
        from models.objectives.blip import MED

        return self._set_up(MED)

    def _set_up(self, kind: type[ModelT]) -> ModelT:
        """Load or make the model as a class of it, and give it the settings."""
        med = kind.from_pretrained(
            folder_of(self.model),
            parts=self.parts,
            tokenizer=self.tokenizer and folder_of(self.tokenizer),
            image_size=self.image_size,
            start=self.start,
            shape=self.shape,
            label_smoothing=getattr(self, "label_smoothing", 0.1),
        )
        large = self.by_size.get("large", {}).get("lr")
        if med.is_large and large and self.model != "large" and self.lr == type(self).lr:
            logger.warning(
                "train: %s has a ViT-L, and lr %g is BLIP's for a ViT-B; for a ViT-L it has %g",
                self.model,
                self.lr,
                large,
            )
        med.start_prompt(self.prompt)
        med.max_text_tokens = self.max_text_tokens
        med.mask_patches = self.mask_patches
        if self.has_fixed_features and not self.mask_patches:
            from models.objectives.features import Features

            med.features = Features()
        if self.drop_path is not None:
            med.drop_path = self.drop_path
        med.floor = self.floor
        med.recompute = self.gradient_checkpointing
        return med


@dataclass(frozen=True, kw_only=True)
class MatcherConfig(BlipConfig):
    """Settings of the objectives that train a matcher, by contrast (ITC) and matching (ITM).

    Attributes:
        queue_size: Number of pairs in the queue of contrast; a multiple of `batch_size`.
        momentum: Share of the momentum encoders' weights that each step keeps.
        alpha: Weight of the momentum encoders' predictions in the targets of contrast.
        alpha_epochs: Epochs in which `alpha` rises from 0.
        negatives: Where the negatives of matching come from: all pairs of the batch
            (`global`) or those of the same stream (`local`). They are drawn by similarity; BLIP's
            pre-training adds 1e-4 to each chance, its fine-tuning and ALBEF nothing.
    """

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = 1
    negatives: Literal["global", "local"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "queue_size", "alpha_epochs")
        check_between(self, 0, 1, "momentum", "alpha")
        check_queue(self.queue_size, self.batch_size)

    def _set_up(self, kind: type[ModelT]) -> ModelT:
        med = super()._set_up(kind)
        med.alpha, med.alpha_epochs = self.alpha, self.alpha_epochs
        med.negatives_are_local = self.negatives == "local"
        med.start_momentum(queue_size=self.queue_size, decay=self.momentum)
        return med


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(MatcherConfig):
    """BLIP's pre-training: contrast, matching and language modelling (ITC + ITM + LM).

    Captioner and matcher share the image encoder and all text weights but self-attention.

    Attributes:
        label_smoothing: Label smoothing of the language modelling loss.
    """

    name = "pretrain"
    departs = (
        "The rate falls by `decay_rate` 0.9 an epoch as in the code, where the paper has "
        "0.85; texts are cut by tokens alone."
    )
    public = (
        "`start: {vision: google/vit-base-patch16-224-in21k, text: bert-base-uncased}`; a BLIP: "
        "`Salesforce/blip-itm-base-coco`."
    )
    parts = ("captioner", "matcher")
    floor = 1e-4
    saves: ClassVar[Mapping[str, Saved]] = {"captioner": CAPTIONER, "matcher": MATCHER}
    round_role = "base"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"large": {"batch_size": 2400, "lr": 2e-4}}
    former: ClassVar[Mapping[str, Any]] = {"albef": False}
    moved: ClassVar[Mapping[str, str]] = {"albef": "albef"}

    image_size: int = 224
    batch_size: int = 2880
    epochs: int = 20
    lr: float = 3e-4
    min_lr: float = 1e-6
    warmup_steps: int = 3000
    schedule: Schedule = "exponential"
    max_text_tokens: int = 30
    crop_scale: float = 0.2
    alpha_epochs: float = 2
    negatives: Literal["global", "local"] = "local"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, 0, 1, "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig(BlipConfig):
    """Fine-tuning of a captioner: language modelling (LM) of the captions behind the prompt.

    Attributes:
        label_smoothing: Label smoothing of the language modelling loss.
    """

    name = "captioner"
    departs = "The cosine falls with every step, not once an epoch."
    public = "A BLIP captioner: `Salesforce/blip-image-captioning-base`."
    parts = ("captioner",)
    saves: ClassVar[Mapping[str, Saved]] = {".": CAPTIONER}
    task = "image-to-text"
    round_role = "tuned"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"large": {"lr": 2e-6}}
    former: ClassVar[Mapping[str, Any]] = {
        "albef": False,
        "queue_size": 57600,
        "momentum": 0.995,
        "alpha": 0.4,
        "alpha_epochs": 1,
        "negatives": "global",
    }

    epochs: int = 5
    max_text_tokens: int = 40
    prompt: str = "a picture of "
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, 0, 1, "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class NearMissConfig(MatcherConfig):
    """Settings of the objectives whose matcher can be trained on near misses.

    Attributes:
        near_misses: How many near misses of its text each pair comes with: the true text with one
            word changed (a noun, a number, a colour, a size or a relation) or two swapped, as in
            NegCLIP (arXiv 2210.01936). They add a loss of weight 1, `near`: half the matching
            loss of the true texts and half that of their near misses. 0 is BLIP's recipe.
        near_miss_kinds: How often a kind of change is drawn (noun, number, colour, size, relation,
            order), relative to 1 for those that are not named; 0 leaves it out. All that a text
            has words for are equally likely by default.
        tagger: A spaCy pipeline that tags parts of speech: the name of an installed one, or a
            folder. With near misses, it reads the texts of up to 20,000 images before the first
            step.
    """

    near_misses: int = 0
    near_miss_kinds: dict[Kind, float] = field(default_factory=dict)
    tagger: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "near_misses")
        weights = [self.near_miss_kinds.get(kind, 1.0) for kind in KINDS]
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                "near_miss_kinds must be numbers of at least 0, not all of them 0, got "
                f"{self.near_miss_kinds}"
            )

    def near_miss_settings(self) -> NearMissSettings:
        """See `ObjectiveConfig.near_miss_settings`."""
        return NearMissSettings(self.near_misses, folder_of(self.tagger), self.near_miss_kinds)

    def measurement(self) -> dict[str, Any]:
        """The settings that change the model; those of near misses only where there are some."""
        settings = super().measurement()
        if not self.near_misses:
            del settings["near_misses"], settings["tagger"]
        if not self.near_misses or not self.near_miss_kinds:
            del settings["near_miss_kinds"]
        return settings


@dataclass(frozen=True, kw_only=True)
class FilterConfig(NearMissConfig):
    """Fine-tuning of a filter: contrast and matching (ITC + ITM).

    In contrast, all texts of an image are positives, with equal weights.
    """

    name = "filter"
    departs = "The cosine falls with every step, not once an epoch."
    public = "A BLIP matcher: `Salesforce/blip-itm-base-coco`."
    parts = ("matcher",)
    saves: ClassVar[Mapping[str, Saved]] = {".": MATCHER}
    round_role = "tuned"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"large": {"lr": 5e-6}}
    former: ClassVar[Mapping[str, Any]] = {"albef": False, "label_smoothing": 0.1}


@dataclass(frozen=True, kw_only=True)
class JointConfig(NearMissConfig):
    """Fine-tuning of captioner and filter as one model (ITC + ITM + LM; Table 4).

    They share the weights that pre-training shares.

    Attributes:
        label_smoothing: Label smoothing of the language modelling loss.
    """

    name = "joint"
    departs = "The paper says little of this ablation; the settings are those of the captioner."
    public = "A BLIP."
    parts = ("captioner", "matcher")
    saves: ClassVar[Mapping[str, Saved]] = {"captioner": CAPTIONER, "matcher": MATCHER}
    round_role = "tuned"
    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {"large": {"lr": 2e-6}}
    former: ClassVar[Mapping[str, Any]] = {"albef": False}

    epochs: int = 5
    max_text_tokens: int = 40
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, 0, 1, "label_smoothing")
