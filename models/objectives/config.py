"""The settings of an objective, and what its class says about it.

A manifest is validated with these classes, so this module and the modules of their subclasses
import no torch; `build` does.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from models.image.augmentation import GREATEST, Augment
from models.objectives.start import NO_SHAPE, NO_START, Shape, Start
from models.text.near_misses import Kind

if TYPE_CHECKING:
    from models.objectives.base import Objective

__all__ = [
    "NearMissSettings",
    "ObjectiveConfig",
    "Saved",
    "Schedule",
    "check_between",
    "check_least",
    "check_positive",
    "check_share",
    "named",
]


Schedule = Literal["cosine", "exponential", "linear", "constant"]


class Saved(NamedTuple):
    """The classes that load a folder that a training writes.

    Attributes:
        architecture: The class that config.json names, such as `CLIPModel`.
        reader: `module:Class` of the class that runs it here, which has `from_pretrained` and
            some of the methods in `models.inference.protocols`; empty where there is none.
    """

    architecture: str
    reader: str = ""


class NearMissSettings(NamedTuple):
    """Settings for the near misses of each pair.

    Attributes:
        number: How many each text has.
        tagger: The spaCy pipeline behind them: a name or a folder.
        weights: How often each kind is drawn, relative to 1 for those without a weight.
    """

    number: int = 0
    tagger: str = ""
    weights: Mapping[Kind, float] = {}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ABC):
    """Settings of a training.

    A subclass is one objective. It sets the class attributes below, gives the fields the values
    of its paper as defaults, and adds the fields that it alone has. `capfilt train` builds the
    model with `build`.

    Attributes:
        model: Model that the training starts from: a size (tiny, small, base, large; random
            weights), a model that `train` has made, or a released model of the objective's
            architecture, local or on the hub.
        tokenizer: A tokenizer's folder or name on the hub, needed where `model` is a size: BERT's
            for BLIP and ALBEF, CLIP's or BERT's for CLIP.
        start: The weights that parts of a new model start from, in the place of random ones:
            {vision, text, language}, each a folder, a name on the hub or `train:NAME`. With
            `vision` or `text`, `model` is a size, whose numbers give way to those of the parts;
            `language` is the language model that an objective builds on.
        shape: Numbers of a new model that differ from those of its size, such as {vision_layers:
            8, patch: 32}.
        freeze: Parts that are not trained: `vision` or `text`. They are in neither the checkpoint,
            the optimiser nor the exchange between workers, and are computed in bf16 where the
            device has instructions for it.
        image_size: Side of the square images, in pixels.
        batch_size: Pairs in a step, those of all workers together.
        epochs: Passes over the images. `steps` decides instead where it is not 0.
        lr: The highest learning rate.
        min_lr: The learning rate at the end (cosine, linear), or its lower bound (exponential).
        warmup_steps: Steps in which the learning rate rises evenly from `warmup_lr` to `lr`.
        warmup_lr: The learning rate of the first of these steps.
        schedule: Learning rate after the warm-up. `cosine` falls with every step, where BLIP's code
            and ALBEF's fall once an epoch; `exponential` is multiplied by `decay_rate` every epoch;
            `linear` falls evenly; `constant` stays.
        decay_rate: The factor of the exponential schedule; 0.9 in BLIP's config, 0.85 in its paper.
        weight_decay: AdamW's weight decay, on matrices only; biases, norms and temperature have
            none.
        beta2: AdamW's second decay rate.
        eps: AdamW's epsilon, added to the root of the second moment.
        max_text_tokens: Maximum number of tokens of a text; longer texts are cut.
        augment: How images are varied: `paper` is a random crop, a mirror image and RandAugment,
            as in BLIP's code; `crop` is the random crop alone; `none` is the whole image.
        crop_scale: The least share of an image's area that a random crop keeps.
        magnitude: RandAugment's strength, from 0 to 10.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    name: ClassVar[str]
    """The word in a manifest."""

    version: ClassVar[int] = 1
    """Raised when the same settings give another model; trainings are then repeated."""

    paper: ClassVar[str]
    """The paper, for the documentation: `BLIP (arXiv 2201.12086)`."""

    departs: ClassVar[str] = ""
    """How it differs from the paper, for the documentation."""

    public: ClassVar[str] = ""
    """The public weights that it can start from, for the documentation."""

    saves: ClassVar[Mapping[str, Saved]]
    """The folders that a training writes, `.` for the model folder itself."""

    reads_conversations: ClassVar[bool] = False
    """Whether texts may be whole conversations, as `models.text.conversation` writes them."""

    library: ClassVar[str] = "transformers"
    """The `library_name` of the model card: what loads the folder."""

    task: ClassVar[str | None] = None
    """The `pipeline_tag` of the model card, one of Hugging Face's task names."""

    round_role: ClassVar[Literal["base", "tuned"] | None] = None
    """The role of the objective in bootstrap rounds.

    In every round after the first, the trainings that are `tuned` start from the model that the
    `base` objective trained on the export of the round before.
    """

    by_size: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Defaults that differ for a size of `model`: `{"large": {"lr": 2e-4}}`."""

    by_choice: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    """Defaults that differ for a value of another field: `{"loss": {"sigmoid": {"lr": 1e-3}}}`."""

    may_save: ClassVar[tuple[Saved, ...]] = ()
    """Folders that some settings write instead of those of `saves`; see `written`."""

    former: ClassVar[Mapping[str, Any]] = {}
    """Settings without effect on this objective that fingerprints contain, with their defaults.

    Earlier versions had one set of fields for all objectives. Their models are still recognised.
    """

    starts: ClassVar[tuple[str, ...]] = ()
    """The parts of `start` that the objective takes."""

    is_shaped: ClassVar[bool] = False
    """Whether the objective takes `shape`."""

    freezes: ClassVar[tuple[str, ...]] = ()
    """The parts that `freeze` may name; the keys of `Objective.parts`."""

    is_divisible: ClassVar[bool] = False
    """Whether its weights can be divided among workers; `Objective.layers` says how."""

    moved: ClassVar[Mapping[str, str]] = {}
    """Switches that this objective had once, with the objectives that have taken their place."""

    model: str = "base"
    tokenizer: str | None = None
    start: Start = NO_START
    shape: Shape = NO_SHAPE
    freeze: tuple[str, ...] = ()
    image_size: int = 224
    batch_size: int = 256
    epochs: int = 10
    lr: float = 1e-4
    min_lr: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    schedule: Schedule = "cosine"
    decay_rate: float = 0.9
    weight_decay: float = 0.05
    beta2: float = 0.999
    eps: float = 1e-8
    max_text_tokens: int = 35
    augment: Augment = "paper"
    crop_scale: float = 0.5
    magnitude: int = 5

    def __post_init__(self) -> None:
        check_least(self, 1, "image_size", "batch_size", "epochs", "max_text_tokens")
        check_least(self, 0, "min_lr", "warmup_steps", "warmup_lr", "weight_decay")
        check_between(self, 0, 1, "crop_scale", "decay_rate", "beta2")
        check_between(self, 0, GREATEST, "magnitude")
        check_positive(self, "lr", "eps")
        for part in self.start.models():
            if part not in self.starts:
                raise ValueError(_takes(self.name, f"start.{part}", "start", self.starts))
        for part in self.freeze:
            if part not in self.freezes:
                raise ValueError(_takes(self.name, f"freeze: {part}", "freeze", self.freezes))
        if self.shape.numbers() and not self.is_shaped:
            raise ValueError(f"train.shape: objective {self.name} takes none")

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Build from some fields; the others have their defaults for the size."""
        return cls(**cls.with_defaults(fields))

    @classmethod
    def with_defaults(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Some fields, with the defaults for their size and choices where they are not given."""
        size = fields.get("model", cls.model)
        own = dict(cls.by_size.get(size, {})) if isinstance(size, str) else {}
        for field, choices in cls.by_choice.items():
            value = fields.get(field, getattr(cls, field))
            own |= choices.get(value, {}) if isinstance(value, str) else {}
        return {**own, **fields}

    def written(self) -> Mapping[str, Saved]:
        """The folders that a training with these settings writes, as `saves` names them."""
        return self.saves

    def models(self) -> dict[str, str]:
        """The models that the training starts from, by the field that names them."""
        parts = {f"start.{part}": model for part, model in self.start.models().items()}
        return {"model": self.model, **parts}

    @property
    def has_fixed_features(self) -> bool:
        """Whether the features of an image are the same in every step: nothing changes them."""
        return "vision" in self.freeze and self.augment == "none"

    @property
    def pairs_together(self) -> int:
        """Pairs that follow one another and belong together; parts of a batch are multiples."""
        return 1

    def near_miss_settings(self) -> NearMissSettings:
        """Return the settings for the near misses of each pair; by default a pair has none."""
        return NearMissSettings()

    def document_settings(self) -> tuple[int, int]:
        """How many interleaved documents a step has where the data have some, and their tokens.

        0 documents if the objective reads pairs alone. The tokens are the most of a document.
        """
        return 0, 0

    def measurement(self) -> dict[str, Any]:
        """The settings that change the trained model, as plain values, for fingerprints."""
        version = {"version": self.version} if self.version > 1 else {}
        own = dataclasses.asdict(self)
        for name, none in (("start", NO_START), ("shape", NO_SHAPE), ("freeze", ())):
            if getattr(self, name) == none:
                del own[name]  # as before there was such a field
        return {**self.former, "objective": self.name, **version, **own}

    @abstractmethod
    def build(self) -> Objective:
        """Make the model that is trained, with weights from `model` or torch's generator.

        Raises:
            ValueError: The settings do not fit the model; the message names the field.
        """


def named(**models: str | None) -> dict[str, str]:
    """The models by field that are set."""
    return {field: model for field, model in models.items() if model is not None}


def _takes(objective: str, field: str, kind: str, known: Sequence[str]) -> str:
    return f"train.{field}: objective {objective} takes {', '.join(known) or 'none'} for {kind}"


def check_least(config: Any, least: float, *fields: str) -> None:
    """Refuse, with a ValueError, fields whose value is below `least`."""
    for field in fields:
        if (value := getattr(config, field)) < least:
            raise ValueError(f"train.{field} must be at least {least}, got {value}")


def check_between(config: Any, low: float, high: float, *fields: str) -> None:
    """Refuse, with a ValueError, fields whose value is not from `low` to `high`."""
    for field in fields:
        if not low <= (value := getattr(config, field)) <= high:
            raise ValueError(f"train.{field} must be from {low} to {high}, got {value}")


def check_share(config: Any, *fields: str) -> None:
    """Refuse, with a ValueError, fields whose value is set and not from 0 to below 1."""
    for field in fields:
        if (value := getattr(config, field)) is not None and not 0 <= value < 1:
            raise ValueError(f"train.{field} must be from 0 to below 1, got {value}")


def check_positive(config: Any, *fields: str) -> None:
    """Refuse, with a ValueError, fields whose value is not above 0."""
    for field in fields:
        if (value := getattr(config, field)) <= 0:
            raise ValueError(f"train.{field} must be positive, got {value}")
